"""Every example, command and link of the site works, and every public name is there."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys

import documents
import pytest
from documents import run

import eoi_jax
from train import export, paper
from train.core import command

ROOT = documents.ROOT
SOURCES = [
  *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
  ROOT / "CONTRIBUTING.md",
]
PAGES = {page.name: page for page in map(documents.read, SOURCES)}
EXAMPLES = {name for name, page in PAGES.items() if page.python.strip()}
DEVICES = "docs/howto/devices.md"
COMMANDS = [words for page in PAGES.values() for words in page.commands]
KNOWN = (
  "cd",
  "gcloud compute",
  "git",
  "make",
  "pip install",
  "python -m pytest",
  "python -m train.export",
  "python -m train.paper",
  "python -m train.preflight",
  "python -m train.prepare",
  "python -m train.report",
  "python -m train.run",
  "python -m train.sweep",
  "sbatch",
)
LANGUAGES = {"python", "bash", "text"}
DIRECTIVES = {"{eval-rst}", "{figure}", "{image}", "{include}", "{toctree}"}
# Entries of the reference: the names of every namespace, by the path to them.
REFERENCE = [
  f"{space.__name__}.{name}"
  for space in vars(eoi_jax).values()
  for name in getattr(space, "__all__", ())
]


def test_no_block_goes_unchecked():
  for page in PAGES.values():
    languages = {language for language, _ in page.blocks}
    assert languages <= LANGUAGES | DIRECTIVES, page.name
  for words in COMMANDS:
    assert " ".join(words).startswith(KNOWN), words


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXAMPLES - {DEVICES}))
def test_python_examples_run(name):
  page = PAGES[name]
  for package in page.needs:
    pytest.importorskip(package)
  page.run_python()


@pytest.mark.slow
def test_the_page_on_many_devices_runs_on_eight():
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
  program = [sys.executable, "-c", PAGES[DEVICES].python]
  subprocess.run(program, cwd=ROOT, env=environment, check=True)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_between_pages(name):
  """Paths exist, and headings are those of the page; Sphinx checks them once more."""
  path = ROOT / name
  for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[name].text):
    target, _, heading = link.partition("#")
    found = (path.parent / target).resolve() if target else path
    assert found.is_file(), link
    if heading:
      titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
      assert heading in map(_anchor, titles), link


def _anchor(title):
  return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_page_is_in_a_table_of_contents():
  listed = {ROOT / "docs" / "index.md", ROOT / "CONTRIBUTING.md"}
  for page in PAGES.values():
    for language, text in page.blocks:
      if language == "{toctree}":
        entries = [x for x in text.split("\n") if x and not x.startswith(":")]
        folder = (ROOT / page.name).parent
        listed |= {(folder / f"{x}.md").resolve() for x in entries}
  assert {ROOT / name for name in PAGES} <= listed


def test_the_reference_has_every_namespace():
  text = "".join(page.text for name, page in PAGES.items() if "docs/api/" in name)
  shown = set(re.findall(r"^\.\. api:: (\S+)", text, re.MULTILINE))
  assert shown == {name.rpartition(".")[0] for name in REFERENCE} - {"eoi_jax"}
  flat = {n for n in eoi_jax.__all__ if not inspect.ismodule(getattr(eoi_jax, n))}
  assert flat <= {name.rpartition(".")[2] for name in REFERENCE}


def test_every_config_is_named():
  configs = {path.stem for path in (ROOT / "configs").glob("*.py")}
  text = PAGES["docs/howto/train.md"].text
  for name in configs - {"__init__", "default"}:
    assert f"`{name}`" in text, name


@documents.commands(COMMANDS, "make")
def test_make_targets_exist(arguments):
  assert "nothing to be done" not in run("make", "--dry-run", *arguments).lower()


@documents.commands(COMMANDS, "pip install")
def test_extras_exist(arguments):
  assert not documents.unknown_extras(arguments)


@documents.commands(COMMANDS, "python -m pytest")
def test_test_files_exist(arguments):
  assert all((ROOT / a).exists() for a in arguments if not a.startswith("-"))


@pytest.mark.slow
@documents.commands(COMMANDS, "python -m train.prepare")
def test_prepare_takes_these_flags(arguments):
  run(sys.executable, "-m", "train.prepare", *arguments, "--only_check_args")


def need_data(arguments, request):
  """Skips a command on MNIST where there is none."""
  if "mnist" in " ".join(arguments):
    request.getfixturevalue("tfds_data_dir")


@pytest.mark.slow
@documents.commands(COMMANDS, "python -m train.run")
def test_training_commands_run(arguments, tmp_path, request):
  """Runs the smoke variant of the config with the flags that the page gives.

  What is for larger machines is parsed only.
  """
  if "cifar10" in " ".join(arguments):
    run(sys.executable, "-m", "train.run", *arguments, "--only_check_args")
    return
  need_data(arguments, request)
  smoke = [re.sub(r"^(configs/\w+\.py)$", r"\1:smoke", a) for a in arguments]
  workdir = tmp_path / "workdir"
  command = [sys.executable, "-m", "train.run", *smoke, "--workdir", str(workdir)]
  output = run(*command, optimized="quickstart" in " ".join(arguments))
  assert "test accuracy" in output.lower(), output
  assert list(workdir.rglob("*.png"))


@pytest.mark.slow
@documents.commands(COMMANDS, "python -m train.sweep")
def test_sweep_commands_expand(arguments, tmp_path):
  status = [*arguments, "--status", "--workdir", str(tmp_path)]
  assert "todo" in run(sys.executable, "-m", "train.sweep", *status)


@documents.commands(COMMANDS, "python -m train.report")
def test_reports_are_of_sweeps_above(arguments):
  sweeps = [words[3:] for words in COMMANDS if words[2:3] == ["train.sweep"]]
  assert arguments[0] in [str(command.default_workdir(words)) for words in sweeps]


@documents.commands(COMMANDS, "python -m train.export")
def test_export_takes_these_flags(arguments):
  assert export.parse(["export", *arguments]).checkpoint == "best"


@pytest.mark.slow
@documents.commands(COMMANDS, "python -m train.preflight")
def test_preflight_commands_run(arguments, tmp_path, request):
  need_data(arguments, request)
  output = run(
    *(sys.executable, "-m", "train.preflight", *arguments, "--samples=2"),
    *("--config.model.depth=4", "--workdir", str(tmp_path)),
  )
  assert "singular values" in output and (tmp_path / "preflight.png").exists()


def test_every_figure_is_named():
  """That each is drawn is the matter of tests/train/test_paper.py."""
  named = [words[3] for words in COMMANDS if words[2:3] == ["train.paper"]]
  assert named == list(paper.FIGURES)


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
  for package in ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "sphinx_design"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
  run(sys.executable, "-m", "sphinx", "-W", "-q", "docs", str(tmp_path))
  assert (tmp_path / "index.html").is_file()
  reference = "".join(p.read_text() for p in (tmp_path / "api").glob("*.html"))
  for name in REFERENCE:
    assert f'id="{name}"' in reference, name
