"""Every field of a config, declared once: default, rule, meaning; and what uses them.

`FIELDS` is the single declaration: `default_config` takes the defaults from it,
`validate` the rules, `help_text` (`python -m train.run --fields`) all of it.
"""

import ast
import contextlib
import difflib
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict, FieldReference, FrozenConfigDict

from train.core.console import UserError
from train.core.optimizers import (
  MAIN,
  METHODS,
  MOVING,
  OPTIMIZERS,
  SCHEDULES,
  check_optimizer,
)
from train.core.own import is_own
from train.data.datasets import DATASETS, TFDS
from train.data.images import AUGMENTS
from train.data.own import is_own_data
from train.models import ACTIVATIONS, DTYPES, MODELS

CRITICAL = "critical"
REFERENCES = ("orthogonal", "delta_orthogonal", "conv_orthogonal")
DENSE_STARTS = (*REFERENCES, "fan_in_uniform")
STARTS = ("eoi", "eoi_in_mask", "eoi_structured", "base", "ai", "sao", *DENSE_STARTS)
# What a start reads of the section `sparsity`, besides scale and distribution.
START_FIELDS = {
  "eoi": ("center", "taps", "floors", "angle"),
  "eoi_in_mask": ("fallback", "angle"),
  "eoi_structured": ("angle",),
  "base": ("reference",),
  "ai": ("reference", "ai_method", "ai_steps"),
}
BY_SHAPE = ("uniform", "uniform_skip", "erk", "dense")
SCORED = ("snip", "grasp", "synflow")


class Rule(NamedTuple):
  """What a field may hold."""

  text: str  # the rule, as it ends the sentence "`FIELD` must be ..."
  holds: Callable[[Any], bool]  # whether a value obeys it
  # the value that a word of the command line or of a comparison stands for
  read: Callable[[str], Any] = str


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _integer(low: int, high: int = 10**9) -> Rule:
  return Rule(
    f"an integer in [{low}, {high}]",
    lambda value: _is_integer(value) and low <= value <= high,
    int,
  )


def _number(interval: str) -> Rule:
  """A number in an interval in mathematical notation, such as "(0, 1]"."""
  low, high = (float(end) for end in interval[1:-1].split(","))

  def holds(value):
    if not _is_number(value):
      return False
    above = value > low if interval[0] == "(" else value >= low
    return above and (value < high if interval[-1] == ")" else value <= high)

  return Rule(f"a number in {interval}", holds, float)


def _one_of(
  *known: str, other: str = "", is_other: Callable[[str], bool] = lambda _: False
) -> Rule:
  """A known name; or another one, such as of your own code."""
  return Rule(
    f"one of {', '.join(known)}" + (other and f", or {other}"),
    lambda value: isinstance(value, str) and (value in known or is_other(value)),
  )


def _different(items: Any) -> bool:
  return isinstance(items, list | tuple) and len(set(map(repr, items))) == len(items)


_WORDS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_BOOLEAN = Rule(
  "True or False",
  lambda value: isinstance(value, bool),
  lambda word: _WORDS[word.lower()],
)
_TEXT = Rule("a string", lambda value: isinstance(value, str))
_SEED = _integer(0, 2**32 - 1)
_SEEDS = Rule(
  f"a tuple of different seeds, each {_SEED.text}",
  lambda value: _different(value) and all(map(_SEED.holds, value)),
  ast.literal_eval,
)
_POSITIVE = _number("(0, inf)")
_SCALE = Rule(
  f"a number in (0, inf) or {CRITICAL!r}",
  lambda value: value == CRITICAL or _POSITIVE.holds(value),
  lambda text: text if text == CRITICAL else float(text),
)


def _is_choice(value: Any) -> bool:
  if isinstance(value, list | tuple):
    return all(isinstance(part, str | int | float) for part in value)
  return isinstance(value, str | int | float)


_CHOICES = Rule(
  "a tuple of different strings, numbers or tuples of them",
  lambda value: _different(value) and all(map(_is_choice, value)),
  ast.literal_eval,
)

_CHANNELS = Rule(
  "a tuple of numbers, one for each channel, or ()",
  lambda value: isinstance(value, list | tuple) and all(map(_is_number, value)),
  ast.literal_eval,
)

_STEPS = Rule(
  "(), or the first and the last step, such as (101, 110)",
  lambda value: (
    isinstance(value, list | tuple)
    and (not value or (len(value) == 2 and all(map(_is_integer, value))))
    and (not value or 1 <= value[0] <= value[1])
  ),
  ast.literal_eval,
)


class Field(NamedTuple):
  """One field of a config."""

  default: Any
  rule: Rule  # what it may hold
  meaning: str  # what it does


FIELDS = {
  "seed": Field(0, _SEED, "everything random is a function of it"),
  "seeds": Field((), _SEEDS, "such as (0, 1, 2): train these instead, in one program"),
  "num_epochs": Field(10, _integer(1), "length of the training"),
  "batch_size": Field(128, _integer(1), "examples of a step, over all devices"),
  "steps_per_dispatch": Field(
    500, _integer(1), "compiled steps between two records in metrics.jsonl"
  ),
  "eval_every": Field(1, _integer(1), "epochs between two evaluations"),
  "checkpoint_every": Field(
    1, _integer(1), "epochs between two checkpoints; the last state is always saved"
  ),
  "keep_checkpoints": Field(2, _integer(1), "newest checkpoints to keep"),
  "keep_best": Field(1, _integer(0), "best checkpoints by held-out accuracy to keep"),
  "placement": Field(
    "replicated", _one_of("replicated", "sharded"), "parameters on several devices"
  ),
  "tensorboard": Field(False, _BOOLEAN, "also write event files; needs tensorboardX"),
  "wandb": Field(
    False,
    _BOOLEAN,
    "also log to Weights & Biases; needs wandb; WANDB_MODE=offline needs no network",
  ),
  "dry_run": Field(
    False, _BOOLEAN, "print layers, steps, time and memory after one step, and stop"
  ),
  "eval_only": Field(
    False,
    _BOOLEAN,
    "evaluate a checkpoint of the workdir, which --checkpoint names, and stop",
  ),
  "profile": Field(
    (),
    _STEPS,
    "write a trace of jax.profiler of these steps, and of the others of their "
    "dispatches, into profile/",
  ),
  "data.name": Field(
    "mnist",
    _one_of(
      *DATASETS,
      other=f"{TFDS}NAME of a prepared data set, or MODULE:FUNCTION of your own",
      is_other=is_own_data,
    ),
    "the data set",
  ),
  "data.mean": Field(
    (), _CHANNELS, "of the pixels divided by 255, subtracted; (): known, or measured"
  ),
  "data.std": Field((), _CHANNELS, "of the same, divided by; given together with mean"),
  "data.augment": Field(
    "none",
    _one_of(*AUGMENTS),
    "of training images; crop_flip: reflect-pad by 4, crop, flip; random_resized_crop: "
    "resize a random part, flip; three_augment: that, then 3-Augment and colour jitter",
  ),
  "data.repeats": Field(
    1, _integer(1, 1000), "copies of each image in a batch, each augmented by itself"
  ),
  "data.mixup": Field(
    0.0, _number("[0, inf)"), "alpha of mixup, of images and labels; 0: none"
  ),
  "data.cutmix": Field(
    0.0, _number("[0, inf)"), "alpha of CutMix; a batch takes one of both; 0: none"
  ),
  "data.validation": Field(
    0.1,
    _number("[0, 1)"),
    "fraction of the training set to hold out; a data set of your own that has a "
    "validation split keeps it",
  ),
  "data.limit": Field(
    0,
    _integer(0),
    "examples of each split to keep, the first ones; of data of your own an equal "
    "share of each class; 0: all",
  ),
  "model.name": Field(
    "mlp",
    _one_of(
      *MODELS, other="MODULE:NAME of a Linen module of your own", is_other=is_own
    ),
    "the network",
  ),
  "model.options": Field(
    "", _TEXT, "more arguments of a network of your own, as in Python: 'heads=8'"
  ),
  "model.depth": Field(
    7,
    _integer(2, 10**5),
    "layers of mlp, cnn, cifar_resnet, first and last included; blocks of vit4",
  ),
  "model.width": Field(100, _integer(1, 10**6), "units or channels of mlp, cnn, vit4"),
  "model.activation": Field("tanh", _one_of(*ACTIVATIONS), "after every hidden layer"),
  "model.dtype": Field("float32", _one_of(*DTYPES), "type of the computation"),
  "model.drop_path": Field(
    0.0,
    _number("[0, 1)"),
    "deit3: stochastic depth, the chance that a block's branch is left out",
  ),
  "model.remat": Field(
    False, _BOOLEAN, "mlp, cnn, deit3, vit4: compute activations twice, to save memory"
  ),
  "model.blocks": Field(
    0,
    _integer(0, 10**6),
    "mlp, vgg16, deit3, vit4: store and multiply only blocks of about this many units "
    "in dense layers as wide; a layer's density is a number of blocks over that of its "
    "groups, the total as near to the wanted one as these steps allow; 0: masks",
  ),
  "sparsity.start": Field(
    "eoi",
    _one_of(*STARTS),
    "initialization of the kernels; the last four are dense, fan_in_uniform is the "
    "default of PyTorch",
  ),
  "sparsity.distribution": Field(
    "uniform",
    _one_of(*BY_SHAPE, *SCORED),
    "rule that gives each kernel its density; dense: 1 everywhere; uniform_skip: 1 for "
    "dense layers that are not square and convolutions of 3 channels, which are "
    "counted on top",
  ),
  "sparsity.density": Field(
    0.1,
    _number("(0, 1]"),
    "trained fraction of all kernels that may be sparse; 1: dense",
  ),
  "sparsity.scale": Field(
    1.0,
    _SCALE,
    "gain of the kernels, sigma_w; critical: set it and bias_std to the critical point "
    "of the activation",
  ),
  "sparsity.q_star": Field(
    0.0259, _POSITIVE, "variance of the pre-activations at the critical point"
  ),
  "sparsity.bias_std": Field(
    0.0, _number("[0, inf)"), "standard deviation of the initial biases, sigma_b"
  ),
  "sparsity.reference": Field(
    "orthogonal",
    _one_of(*REFERENCES),
    "dense start that base masks, AI improves and scores look at",
  ),
  "sparsity.center": Field(
    "plain",
    _one_of("plain", "more"),
    "nonzeros of EOI at the centre tap of k taps, as a density; plain: that of the "
    "kernel, d; more: min(d k, sqrt(d), 1)",
  ),
  "sparsity.fallback": Field(
    "",
    _one_of("", "partial", "ai", "base"),
    "start of a layer whose mask allows eoi_in_mask no isometry; empty: an error",
  ),
  "sparsity.taps": Field(
    "center",
    _one_of("center", "all", "polyphase"),
    "where EOI places nonzeros of convolutions; all: an isometry over all taps at "
    "stride 1, polyphase: at the strides of the layer",
  ),
  "sparsity.ai_method": Field(
    "sgd", _one_of("sgd", "adam"), "optimizer of AI; published: sgd"
  ),
  "sparsity.ai_steps": Field(10_000, _integer(0), "steps of AI; adam needs about 200"),
  "sparsity.floors": Field(
    "lift",
    _one_of("lift", "error"),
    "kernels to which erk or scores give too few weights for start eoi: lift them at "
    "the cost of the others, or stop with an error",
  ),
  "sparsity.angle": Field(
    0.0, _number("[-360, 360]"), "of EOI's rotations, in degrees; 0: uniformly random"
  ),
  "sparsity.grasp_examples": Field(
    25, _integer(2), "examples of each class that GraSP scores, in two halves"
  ),
  "sparsity.synflow_rounds": Field(100, _integer(1), "pruning rounds of SynFlow"),
  "optimizer.name": Field(
    "sgd",
    _one_of(
      *MAIN, other="another optimizer of optax", is_other=OPTIMIZERS.__contains__
    ),
    "the optimizer; muon takes kernels as matrices and leaves all else to adamw",
  ),
  "optimizer.options": Field(
    "", _TEXT, "more arguments of it, as in Python: 'b2=0.95, eps=1e-6'"
  ),
  "optimizer.learning_rate": Field(0.01, _number("[0, inf)"), "highest learning rate"),
  "optimizer.momentum": Field(
    0.9, _number("[0, 1)"), "of optimizers that have it; b1 of adam, beta of muon"
  ),
  "optimizer.nesterov": Field(
    True, _BOOLEAN, "Nesterov momentum, of optimizers that have it"
  ),
  "optimizer.weight_decay": Field(
    1e-4,
    _number("[0, inf)"),
    "of all parameters; through the gradient of optimizers without such an argument "
    "(sgd, adam), else decoupled",
  ),
  "optimizer.schedule": Field(
    "step",
    _one_of(*SCHEDULES),
    "of the learning rate, by optax but for step: a tenth at 1/2 and at 3/4",
  ),
  "optimizer.schedule_options": Field(
    "", _TEXT, "more arguments of it; lengths are those of the training unless given"
  ),
  "optimizer.warmup": Field(
    0.0,
    _number("[0, 1]"),
    "fraction of the training in which the rate rises, with any schedule",
  ),
  "optimizer.accumulate": Field(
    1,
    _integer(1),
    "micro-batches, one after another, that a batch is cut in to save memory",
  ),
  "optimizer.ema": Field(
    0.0,
    _number("[0, 1)"),
    "decay of running means of parameters and batch statistics, which are evaluated "
    "then; 0: none",
  ),
  "optimizer.loss": Field(
    "cross_entropy",
    _one_of("cross_entropy", "binary_cross_entropy"),
    "of training; binary_cross_entropy: mean over the classes, each a yes or a no; "
    "evaluation reports cross_entropy",
  ),
  "optimizer.label_smoothing": Field(
    0.0, _number("[0, 1)"), "probability spread evenly over all classes"
  ),
  "optimizer.clip_norm": Field(
    0.0, _number("[0, inf)"), "largest norm of the gradient; 0: no limit"
  ),
  "dynamic.method": Field(
    "static",
    _one_of(*METHODS),
    "whether and how masks change; srigl: RigL with constant fan-in; gmp: gradual "
    "magnitude pruning from `sparsity.density` to `dynamic.density`",
  ),
  "dynamic.fraction": Field(
    0.3, _number("[0, 1]"), "live weights replaced at first; falls as a cosine"
  ),
  "dynamic.every": Field(100, _integer(1), "steps between two changes of the masks"),
  "dynamic.begin": Field(
    0.0, _number("[0, 1)"), "gmp: fraction of the training before which masks stay"
  ),
  "dynamic.until": Field(
    0.75, _number("[0, 1]"), "fraction of the training after which masks stay"
  ),
  "dynamic.density": Field(
    0.1,
    _number("(0, 1]"),
    "gmp: density at the end, by `sparsity.distribution` or with scope global of all",
  ),
  "dynamic.scope": Field(
    "layer",
    _one_of("layer", "global"),
    "whose number of live weights is kept, or prescribed by gmp; srigl: layer",
  ),
  "dynamic.mean_decay": Field(
    0.0, _number("[0, 1)"), "of the mean gradient that RigL ranks by; 0: no mean"
  ),
  "dynamic.skip_step": Field(
    False, _BOOLEAN, "make no update in the steps that change masks, as published"
  ),
  "dynamic.isometry_steps": Field(
    0, _integer(0), "steps towards isometric kernels after each change of the masks"
  ),
  "dynamic.isometry_scale": Field(
    0.0, _number("[0, inf)"), "gain of these; 0: each kernel keeps its own"
  ),
  "compare.field": Field(
    "", _TEXT, "field to train several values of, or fields joined by '+'"
  ),
  "compare.choices": Field(
    (),
    _CHOICES,
    "its values; of several fields tuples, or words joined by '+': ('erk', 0.1) or "
    "'erk+0.1'",
  ),
}


# They say how and where to run rather than what: a run may go on with other values, and
# gives the same numbers.
LOCAL = {"keep_checkpoints", "keep_best", "placement", "tensorboard", "wandb"}
LOCAL |= {"dry_run", "eval_only", "profile"}


def default_config() -> ConfigDict:
  """Returns a config that holds the default of every field."""
  values = {name: field.default for name, field in FIELDS.items()}
  # A scale may be a number or a word, and flags go by the type of the default.
  name = "sparsity.scale"
  values[name] = FieldReference(values[name], field_type=object)
  return ConfigDict(unflatten_dict(values, sep="."))


def help_text() -> str:
  """Returns all fields as text: default, rule and meaning of each."""
  return "\n".join(
    f"{name} = {field.default!r}\n    {field.meaning}; {field.rule.text}"
    for name, field in FIELDS.items()
  )


def flatten(config: Any) -> dict[str, Any]:
  """Returns `{"model.depth": 7, ...}` from a config or a nested dictionary."""
  nested = config.to_dict() if isinstance(config, ConfigDict) else config
  return flatten_dict(nested, sep=".")


def check_names(names: Any, known: Any) -> None:
  """Raises a UserError, with the nearest known name, unless all names are known."""
  for name in names:
    if name not in known:
      near = difflib.get_close_matches(name, list(known), 1, 0.5)
      parts = [n.partition(".") for n in known]
      top = dict.fromkeys(head + (dot and ".*") for head, dot, _ in parts)
      hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(top)}."
      raise UserError(f"unknown config field `{name}`; {hint}")


def read_word(name: str, word: str) -> Any:
  """Returns the value that a word of a command line stands for in a field.

  Raises:
    UserError: if there is none.
  """
  rule = FIELDS[name].rule
  if not rule.holds(value := _read(rule, word)):
    raise UserError(f"`{name}` must be {rule.text}, got {word!r}.")
  return value


def _read(rule: Rule, word: str) -> Any:
  """The value of a word, or None, which obeys no rule."""
  with contextlib.suppress(KeyError, ValueError, SyntaxError):
    return rule.read(word)


def validate(config: Any) -> None:
  """Checks names, types and ranges of every field.

  Raises:
    UserError: for the first field that is unknown, missing or out of its range.
  """
  flat = flatten(config)
  check_names(flat, FIELDS)
  for name, field in FIELDS.items():
    if name not in flat:
      raise UserError(f"config field `{name}` is missing.")
    if not field.rule.holds(flat[name]):
      raise UserError(f"`{name}` must be {field.rule.text}, got {flat[name]!r}.")
  check_optimizer(FrozenConfigDict(config.optimizer))
  _check_dynamic(config.dynamic, config.sparsity)
  mean, std = config.data.mean, config.data.std
  if len(mean) != len(std) or any(number <= 0 for number in std):
    raise UserError(
      "`data.std` must hold as many numbers as `data.mean`, each above 0, got "
      f"{mean!r} and {std!r}."
    )
  compared = config.compare.field
  if bool(compared) != bool(len(config.compare.choices)):
    raise UserError("`compare.field` and `compare.choices` must be given together.")
  if not compared:
    return
  names = compared.split("+")
  for name in names:
    if name not in FIELDS or name.startswith("compare."):
      raise UserError(f"`compare.field` must name a field, got {name!r}.")
  choices = [_values(names, choice) for choice in config.compare.choices]
  if (now := [flat[name] for name in names]) not in choices:
    raise UserError(
      f"`{compared}` is {(now[0] if len(now) == 1 else choice_name(now))!r}, but this "
      f"config compares {', '.join(map(choice_name, config.compare.choices))}; change "
      "`compare.choices` instead."
    )


def _check_dynamic(dynamic: Any, sparsity: Any) -> None:
  scored = sparsity.distribution in SCORED and sparsity.start != "eoi"
  if dynamic.method == "srigl" and scored:
    raise UserError(
      "`sparsity.distribution` must not be by scores for srigl, whose units have equal "
      f"counts, got {sparsity.distribution!r}."
    )
  if dynamic.method in MOVING and sparsity.start in DENSE_STARTS:
    raise UserError(
      f"`sparsity.start` must be a sparse one for `dynamic.method` = "
      f"{dynamic.method!r}, which moves masks, got {sparsity.start!r}."
    )
  if dynamic.method == "srigl" and dynamic.scope != "layer":
    raise UserError(
      f"`dynamic.scope` must be 'layer' for srigl, got {dynamic.scope!r}."
    )
  if dynamic.method == "gmp" and not dynamic.begin < dynamic.until:
    raise UserError(
      f"`dynamic.until` must be above `dynamic.begin` = {dynamic.begin} for gmp, got "
      f"{dynamic.until}."
    )


def _values(names: list[str], choice: Any) -> list[Any]:
  """Returns the values of the fields `names` in one of `compare.choices`.

  Raises:
    UserError: if their number is wrong, or one breaks the rule of its field.
  """
  if len(names) == 1:
    parts = [choice]
  elif isinstance(choice, str):
    parts = choice.split("+")
  else:
    parts = list(choice) if isinstance(choice, list | tuple) else [choice]
  if len(parts) != len(names):
    raise UserError(
      f"`compare.choices` must hold {len(names)} values joined by '+' or in a tuple, "
      f"as `compare.field` does fields, got {choice!r}."
    )
  words = isinstance(choice, str) and len(names) > 1
  values = []
  for name, part in zip(names, parts, strict=True):
    rule = FIELDS[name].rule
    values.append(_read(rule, part) if words else part)
    if not rule.holds(values[-1]):
      raise UserError(
        f"`compare.choices` for `{name}` must be {rule.text}, got {part!r}."
      )
  return values


def choice_name(choice: Any) -> str:
  """Returns one of `compare.choices` as a word: "erk+0.1", the name of its run."""
  parts = choice if isinstance(choice, list | tuple) else [choice]
  return "+".join(map(str, parts))


def run_name(field: str, name: str) -> str:
  """Returns the name of a run, which its directory has, too: "erk", "fallback=none".

  It is `name`, that of the choice, but for an empty one, which its field tells apart.
  """
  if name.strip("."):
    return name
  return f"{field.rpartition('.')[2]}={name or 'none'}"


def label(field: str, name: str) -> str:
  """Returns what to call a run in tables and figures: "eoi start", or "erk eoi"."""
  if "+" in field:
    return name.replace("+", " ").replace("_", " ")
  section, _, leaf = field.rpartition(".")
  if name.startswith(f"{leaf}="):
    return name
  return f"{name} {section if leaf == 'name' else leaf}".replace("_", " ")


def changed(config: Any, changes: dict[str, Any]) -> Any:
  """Returns a locked copy of a config with other values in some fields, by name."""
  config = config.copy_and_resolve_references().unlock()
  with config.ignore_type():  # a scale may be a number or a word
    config.update_from_flattened_dict(changes)
  return config.lock()


def expand(config: Any) -> dict[str, Any]:
  """Returns one config for each value that `config` compares, by name.

  Each is what a person would write to train that one alone. A config that compares
  nothing gives itself, under the name of its start.
  """
  field, runs = config.compare.field, {}
  if not field:
    return {config.sparsity.start: config}
  names, alone = field.split("+"), {"compare.field": "", "compare.choices": ()}
  for choice in config.compare.choices:
    values = dict(zip(names, _values(names, choice), strict=True))
    runs[run_name(field, choice_name(choice))] = changed(config, alone | values)
  return runs


def to_json(config: Any) -> str:
  """Returns the config as JSON text, fields in their order."""
  return json.dumps(config.to_dict(), indent=2) + "\n"


def from_saved(saved: dict[str, Any]) -> Any:
  """Returns the config of what `to_json` wrote; a field that it lacks has its default.

  Raises:
    UserError: if it has a field that there is not.
  """
  check_names(flat := flatten(saved), FIELDS)
  return changed(default_config(), {name: _tuples(flat[name]) for name in flat})


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def differences(ours: Any, theirs: dict[str, Any]) -> list[str]:
  """Lists the fields in which a config and a saved one differ, local ones aside.

  A field that the saved one lacks, since it is older, has its default there.
  """
  left, right = flatten(ours), flatten(theirs)
  defaults = {name: field.default for name, field in FIELDS.items()}
  found = []
  for name in sorted((left.keys() | right.keys()) - LOCAL):
    there, here = (
      _tuples(flat.get(name, defaults.get(name, "(absent)"))) for flat in (right, left)
    )
    found += [f"{name}: {there!r} there, {here!r} here"] if there != here else []
  return found
