"""Every field of a config, declared once: default, rule, meaning; and what uses them.

`FIELDS` is the single declaration: `default_config` takes the defaults from it,
`validate` the rules, `help_text` (`python -m train.run --fields`) all of it.
"""

import ast
import contextlib
import difflib
import json
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

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
from train.core.own import as_tuples, is_own
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


class Field(NamedTuple):
  """One field of a config."""

  name: str
  default: Any
  rule: Rule


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _integer(low: int, high: int = 10**9) -> Rule:
  text = f"an integer in [{low}, {high}]"
  return Rule(text, lambda value: _is_integer(value) and low <= value <= high)


def _number(interval: str) -> Rule:
  """A number in an interval in mathematical notation, such as "(0, 1]"."""
  low, high = (float(end) for end in interval[1:-1].split(","))
  ends = {low} if interval[0] == "[" else set()
  ends |= {high} if interval[-1] == "]" else set()
  return Rule(
    f"a number in {interval}",
    lambda value: _is_number(value) and (low < value < high or value in ends),
  )


def _one_of(
  *known: str, other: str = "", is_other: Callable[[str], bool] = lambda _: False
) -> Rule:
  """A known name; or another one, such as of your own code."""
  return Rule(
    f"one of {', '.join(known)}" + (other and f", or {other}"),
    lambda value: isinstance(value, str) and (value in known or is_other(value)),
  )


def _tuple(text: str, holds: Callable[[Any], bool], *, different: bool = True) -> Rule:
  """A tuple of items that a condition holds of."""

  def is_such(value):
    if not isinstance(value, list | tuple) or not all(map(holds, value)):
      return False
    return not different or len(set(map(repr, value))) == len(value)

  return Rule(text, is_such)


def _is_choice(value: Any) -> bool:
  parts = value if isinstance(value, list | tuple) else [value]
  return all(isinstance(part, str | int | float) for part in parts)


def _are_steps(value: Any) -> bool:
  if not isinstance(value, list | tuple) or not all(map(_is_integer, value)):
    return False
  return not value or (len(value) == 2 and 1 <= value[0] <= value[1])


_BOOLEAN = Rule("True or False", lambda value: isinstance(value, bool))
_TEXT = Rule("a string", lambda value: isinstance(value, str))
_SEED = _integer(0, 2**32 - 1)
_SEEDS = _tuple(f"a tuple of different seeds, each {_SEED.text}", _SEED.holds)
_POSITIVE = _number("(0, inf)")
_SCALE = Rule(
  f"a number in (0, inf) or {CRITICAL!r}",
  lambda value: value == CRITICAL or _POSITIVE.holds(value),
)
_CHOICES = _tuple("a tuple of different strings, numbers or tuples of them", _is_choice)
_CHANNELS = _tuple(
  "a tuple of numbers, one for each channel, or ()", _is_number, different=False
)
_STEPS = Rule("(), or the first and the last step, such as (101, 110)", _are_steps)
_DATA_NAME = _one_of(
  *DATASETS,
  other=f"{TFDS}NAME of a prepared data set, or MODULE:FUNCTION of your own",
  is_other=is_own_data,
)
_MODEL_NAME = _one_of(
  *MODELS, other="MODULE:NAME of a Linen module of your own", is_other=is_own
)
_OPTIMIZER_NAME = _one_of(
  *MAIN, other="another optimizer of optax", is_other=OPTIMIZERS.__contains__
)
_LOSS = _one_of("cross_entropy", "binary_cross_entropy")

# Each field, and what it does.
_MEANINGS = {
  Field("seed", 0, _SEED): "everything random is a function of it",
  Field("seeds", (), _SEEDS): "such as (0, 1, 2): train these instead, in one program",
  Field("num_epochs", 10, _integer(1)): "length of the training",
  Field("batch_size", 128, _integer(1)): "examples of a step, over all devices",
  Field("steps_per_dispatch", 500, _integer(1)): """compiled steps between two records
    in metrics.jsonl""",
  Field("eval_every", 1, _integer(1)): "epochs between two evaluations",
  Field("checkpoint_every", 1, _integer(1)): """epochs between two checkpoints; the last
    state is always saved""",
  Field("keep_checkpoints", 2, _integer(1)): "newest checkpoints to keep",
  Field("keep_best", 1, _integer(0)): "best checkpoints by held-out accuracy to keep",
  Field("placement", "replicated", _one_of("replicated", "sharded")): """parameters on
    several devices""",
  Field("tensorboard", False, _BOOLEAN): "also write event files; needs tensorboardX",
  Field("wandb", False, _BOOLEAN): """also log to Weights & Biases; needs wandb;
    WANDB_MODE=offline needs no network""",
  Field("dry_run", False, _BOOLEAN): """print layers, steps, time and memory after one
    step, and stop""",
  Field("eval_only", False, _BOOLEAN): """evaluate a checkpoint of the workdir, which
    --checkpoint names, and stop""",
  Field("profile", (), _STEPS): """write a trace of jax.profiler of these steps, and of
    the others of their dispatches, into profile/""",
  Field("data.name", "mnist", _DATA_NAME): "the data set",
  Field("data.mean", (), _CHANNELS): """of the pixels divided by 255, subtracted; ():
    known, or measured""",
  Field("data.std", (), _CHANNELS): "of the same, divided by; given together with mean",
  Field("data.augment", "none", _one_of(*AUGMENTS)): """of training images; crop_flip:
    reflect-pad by 4, crop, flip; random_resized_crop: resize a random part, flip;
    three_augment: that, then 3-Augment and colour jitter""",
  Field("data.repeats", 1, _integer(1, 1000)): """copies of each image in a batch, each
    augmented by itself""",
  Field("data.mixup", 0.0, _number("[0, inf)")): """alpha of mixup, of images and
    labels; 0: none""",
  Field("data.cutmix", 0.0, _number("[0, inf)")): """alpha of CutMix; a batch takes one
    of both; 0: none""",
  Field("data.validation", 0.1, _number("[0, 1)")): """fraction of the training set to
    hold out; a data set of your own that has a validation split keeps it""",
  Field("data.limit", 0, _integer(0)): """examples of each split to keep, the first
    ones; of data of your own an equal share of each class; 0: all""",
  Field("model.name", "mlp", _MODEL_NAME): "the network",
  Field("model.options", "", _TEXT): """more arguments of a network of your own, as in
    Python: 'heads=8'""",
  Field("model.depth", 7, _integer(2, 10**5)): """layers of mlp, cnn, cifar_resnet,
    first and last included; blocks of vit4""",
  Field("model.width", 100, _integer(1, 10**6)): "units or channels of mlp, cnn, vit4",
  Field("model.activation", "tanh", _one_of(*ACTIVATIONS)): "after every hidden layer",
  Field("model.dtype", "float32", _one_of(*DTYPES)): "type of the computation",
  Field("model.drop_path", 0.0, _number("[0, 1)")): """deit3: stochastic depth, the
    chance that a block's branch is left out""",
  Field("model.remat", False, _BOOLEAN): """mlp, cnn, deit3, vit4: compute activations
    twice, to save memory""",
  Field("model.blocks", 0, _integer(0, 10**6)): """mlp, vgg16, deit3, vit4: store and
    multiply only blocks of about this many units in dense layers as wide; a layer's
    density is a number of blocks over that of its groups, the total as near to the
    wanted one as these steps allow; 0: masks""",
  Field("sparsity.start", "eoi", _one_of(*STARTS)): """initialization of the kernels;
    the last four are dense, fan_in_uniform is the default of PyTorch""",
  Field("sparsity.distribution", "uniform", _one_of(*BY_SHAPE, *SCORED)): """rule that
    gives each kernel its density; dense: 1 everywhere; uniform_skip: 1 for dense layers
    that are not square and convolutions of 3 channels, which are counted on top""",
  Field("sparsity.density", 0.1, _number("(0, 1]")): """trained fraction of all kernels
    that may be sparse; 1: dense""",
  Field("sparsity.scale", 1.0, _SCALE): """gain of the kernels, sigma_w; critical: set
    it and bias_std to the critical point of the activation""",
  Field("sparsity.q_star", 0.0259, _POSITIVE): """variance of the pre-activations at the
    critical point""",
  Field("sparsity.bias_std", 0.0, _number("[0, inf)")): """standard deviation of the
    initial biases, sigma_b""",
  Field("sparsity.reference", "orthogonal", _one_of(*REFERENCES)): """dense start that
    base masks, AI improves and scores look at""",
  Field("sparsity.center", "plain", _one_of("plain", "more")): """nonzeros of EOI at the
    centre tap of k taps, as a density; plain: that of the kernel, d; more: min(d k,
    sqrt(d), 1)""",
  Field("sparsity.fallback", "", _one_of("", "partial", "ai", "base")): """start of a
    layer whose mask allows eoi_in_mask no isometry; empty: an error""",
  Field("sparsity.taps", "center", _one_of("center", "all", "polyphase")): """where EOI
    places nonzeros of convolutions; all: an isometry over all taps at stride 1,
    polyphase: at the strides of the layer""",
  Field("sparsity.ai_method", "sgd", _one_of("sgd", "adam")): """optimizer of AI;
    published: sgd""",
  Field("sparsity.ai_steps", 10_000, _integer(0)): "steps of AI; adam needs about 200",
  Field("sparsity.floors", "lift", _one_of("lift", "error")): """kernels to which erk or
    scores give too few weights for start eoi: lift them at the cost of the others, or
    stop with an error""",
  Field("sparsity.angle", 0.0, _number("[-360, 360]")): """of EOI's rotations, in
    degrees; 0: uniformly random""",
  Field("sparsity.grasp_examples", 25, _integer(2)): """examples of each class that
    GraSP scores, in two halves""",
  Field("sparsity.synflow_rounds", 100, _integer(1)): "pruning rounds of SynFlow",
  Field("optimizer.name", "sgd", _OPTIMIZER_NAME): """the optimizer; muon takes kernels
    as matrices and leaves all else to adamw""",
  Field("optimizer.options", "", _TEXT): """more arguments of it, as in Python:
    'b2=0.95, eps=1e-6'""",
  Field("optimizer.learning_rate", 0.01, _number("[0, inf)")): "highest learning rate",
  Field("optimizer.momentum", 0.9, _number("[0, 1)")): """of optimizers that have it; b1
    of adam, beta of muon""",
  Field("optimizer.nesterov", True, _BOOLEAN): """Nesterov momentum, of optimizers that
    have it""",
  Field("optimizer.weight_decay", 1e-4, _number("[0, inf)")): """of all parameters;
    through the gradient of optimizers without such an argument (sgd, adam), else
    decoupled""",
  Field("optimizer.schedule", "step", _one_of(*SCHEDULES)): """of the learning rate, by
    optax but for step: a tenth at 1/2 and at 3/4""",
  Field("optimizer.schedule_options", "", _TEXT): """more arguments of it; lengths are
    those of the training unless given""",
  Field("optimizer.warmup", 0.0, _number("[0, 1]")): """fraction of the training in
    which the rate rises, with any schedule""",
  Field("optimizer.accumulate", 1, _integer(1)): """micro-batches, one after another,
    that a batch is cut in to save memory""",
  Field("optimizer.ema", 0.0, _number("[0, 1)")): """decay of running means of
    parameters and batch statistics, which are evaluated then; 0: none""",
  Field("optimizer.loss", "cross_entropy", _LOSS): """of training; binary_cross_entropy:
    mean over the classes, each a yes or a no; evaluation reports cross_entropy""",
  Field("optimizer.label_smoothing", 0.0, _number("[0, 1)")): """probability spread
    evenly over all classes""",
  Field("optimizer.clip_norm", 0.0, _number("[0, inf)")): """largest norm of the
    gradient; 0: no limit""",
  Field("dynamic.method", "static", _one_of(*METHODS)): """whether and how masks change;
    srigl: RigL with constant fan-in; gmp: gradual magnitude pruning from
    `sparsity.density` to `dynamic.density`""",
  Field("dynamic.fraction", 0.3, _number("[0, 1]")): """live weights replaced at first;
    falls as a cosine""",
  Field("dynamic.every", 100, _integer(1)): "steps between two changes of the masks",
  Field("dynamic.begin", 0.0, _number("[0, 1)")): """gmp: fraction of the training
    before which masks stay""",
  Field("dynamic.until", 0.75, _number("[0, 1]")): """fraction of the training after
    which masks stay""",
  Field("dynamic.density", 0.1, _number("(0, 1]")): """gmp: density at the end, by
    `sparsity.distribution` or with scope global of all""",
  Field("dynamic.scope", "layer", _one_of("layer", "global")): """whose number of live
    weights is kept, or prescribed by gmp; srigl: layer""",
  Field("dynamic.mean_decay", 0.0, _number("[0, 1)")): """of the mean gradient that RigL
    ranks by; 0: no mean""",
  Field("dynamic.skip_step", False, _BOOLEAN): """make no update in the steps that
    change masks, as published""",
  Field("dynamic.isometry_steps", 0, _integer(0)): """steps towards isometric kernels
    after each change of the masks""",
  Field("dynamic.isometry_scale", 0.0, _number("[0, inf)")): """gain of these; 0: each
    kernel keeps its own""",
  Field("compare.field", "", _TEXT): """field to train several values of, or fields
    joined by '+'""",
  Field("compare.choices", (), _CHOICES): """its values; of several fields tuples, or
    words joined by '+': ('erk', 0.1) or 'erk+0.1'""",
}
FIELDS = {field.name: field for field in _MEANINGS}
DEFAULTS = {field.name: field.default for field in _MEANINGS}

# They say how and where to run rather than what: a run may go on with other values, and
# gives the same numbers.
LOCAL = {"keep_checkpoints", "keep_best", "placement", "tensorboard", "wandb"}
LOCAL |= {"dry_run", "eval_only", "profile"}


def default_config() -> ConfigDict:
  """Returns a config that holds the default of every field."""
  # A scale may be a number or a word.
  scale = FieldReference(DEFAULTS["sparsity.scale"], field_type=object)
  return ConfigDict(unflatten_dict(DEFAULTS | {"sparsity.scale": scale}, sep="."))


def help_text() -> str:
  """Returns all fields as text: default, rule and meaning of each."""
  return "\n".join(
    f"{name} = {default!r}\n    {' '.join(meaning.split())}; {rule.text}"
    for (name, default, rule), meaning in _MEANINGS.items()
  )


def flatten(config: Any) -> dict[str, Any]:
  """Returns `{"model.depth": 7, ...}` from a config or a nested dictionary."""
  nested = config.to_dict() if isinstance(config, ConfigDict) else config
  return flatten_dict(nested, sep=".")


def check_names(names: Iterable[str]) -> None:
  """Raises a UserError, with the nearest known name, unless all are those of fields."""
  for name in names:
    if name not in FIELDS:
      near = difflib.get_close_matches(name, FIELDS, 1, 0.5)
      parts = [n.partition(".") for n in FIELDS]
      top = dict.fromkeys(head + (dot and ".*") for head, dot, _ in parts)
      hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(top)}."
      raise UserError(f"unknown config field `{name}`; {hint}")


_WORDS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
# The value that a word stands for, by the type of the field's default.
_READ: dict[type, Callable[[str], Any]] = {
  bool: lambda word: _WORDS[word.lower()],
  int: int,
  float: float,
  str: str,
  tuple: ast.literal_eval,
}


def _value_of(name: str, word: str) -> Any:
  """The value of a word; the word itself, such as a scale's, if it has no such type."""
  with contextlib.suppress(KeyError, ValueError, SyntaxError, TypeError):
    return _READ[type(DEFAULTS[name])](word)
  return word


def _obey(name: str, value: Any, given: Any, title: str) -> Any:
  """Returns a value, which was given as `given`, if it obeys the rule of its field."""
  rule = FIELDS[name].rule
  if not rule.holds(value):
    raise UserError(f"{title} must be {rule.text}, got {given!r}.")
  return value


def read_word(name: str, word: str, title: str = "") -> Any:
  """Returns the value that a word of a command line stands for in a field.

  Raises:
    UserError: if there is none; it calls the field by its name, or by a title.
  """
  return _obey(name, _value_of(name, word), word, title or f"`{name}`")


def refuse(config: Any, name: str, rule: str) -> NoReturn:
  """Raises a UserError: the value of a field breaks a rule, "be at least 3"."""
  raise UserError(f"`{name}` must {rule}, got {flatten(config)[name]!r}.")


def validate(config: Any) -> None:
  """Checks names, types and ranges of every field.

  Raises:
    UserError: for the first field that is unknown, missing or out of its range.
  """
  flat = flatten(config)
  check_names(flat)
  for name in FIELDS:
    if name not in flat:
      raise UserError(f"config field `{name}` is missing.")
    _obey(name, flat[name], flat[name], f"`{name}`")
  check_optimizer(FrozenConfigDict(config.optimizer))
  _check_dynamic(config)
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


def _check_dynamic(config: Any) -> None:
  dynamic, sparsity = config.dynamic, config.sparsity
  if dynamic.method == "srigl":
    if sparsity.distribution in SCORED and sparsity.start != "eoi":
      rule = "not be by scores for srigl, whose units have equal counts"
      refuse(config, "sparsity.distribution", rule)
    if dynamic.scope != "layer":
      refuse(config, "dynamic.scope", "be 'layer' for srigl")
  if dynamic.method in MOVING and sparsity.start in DENSE_STARTS:
    method = f"`dynamic.method` = {dynamic.method!r}, which moves masks"
    refuse(config, "sparsity.start", f"be a sparse one for {method}")
  if dynamic.method == "gmp" and not dynamic.begin < dynamic.until:
    rule = f"be above `dynamic.begin` = {dynamic.begin} for gmp"
    refuse(config, "dynamic.until", rule)


def _values(names: list[str], choice: Any) -> list[Any]:
  """Returns the checked values of the fields `names` in one of `compare.choices`."""
  parts = _parts(choice) if len(names) > 1 else [choice]
  if as_text := len(names) > 1 and isinstance(choice, str):
    parts = choice.split("+")
  if len(parts) != len(names):
    raise UserError(
      f"`compare.choices` must hold {len(names)} values joined by '+' or in a tuple, "
      f"as `compare.field` does fields, got {choice!r}."
    )
  values = map(_value_of, names, parts) if as_text else parts
  return [
    _obey(name, value, part, f"`compare.choices` for `{name}`")
    for name, value, part in zip(names, values, parts, strict=True)
  ]


def _parts(choice: Any) -> list[Any]:
  return list(choice) if isinstance(choice, list | tuple) else [choice]


def choice_name(choice: Any) -> str:
  """Returns one of `compare.choices` as a word: "erk+0.1", the name of its run."""
  return "+".join(map(str, _parts(choice)))


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
  check_names(flat := flatten(saved))
  return changed(default_config(), {name: as_tuples(flat[name]) for name in flat})


def differences(ours: Any, theirs: dict[str, Any]) -> list[str]:
  """Lists the fields in which a config and a saved one differ, local ones aside.

  A field that the saved one lacks, since it is older, has its default there.
  """
  here, there = (DEFAULTS | flatten(config) for config in (ours, theirs))
  found = []
  for name in sorted((here.keys() | there.keys()) - LOCAL):
    pair = [as_tuples(flat.get(name, "(absent)")) for flat in (there, here)]
    if pair[0] != pair[1]:
      found.append("{}: {!r} there, {!r} here".format(name, *pair))
  return found
