"""Forward passes agree with torch models of the same definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.models import VGG, cifar_resnet, resnet50

torch = pytest.importorskip(
  "torch", reason="torch is not installed: pip install -e '.[torch]'"
)
torch_networks = pytest.importorskip("benchmarks.torch_networks")
nn = torch.nn


def randomize(model):
  """Gives normalization layers statistics and factors that a mistake would show."""
  for module in model.modules():
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
      for tensor, low, high in (
        (module.weight, 0.5, 1.5),
        (module.bias, -0.2, 0.2),
        (module.running_mean, -0.2, 0.2),
        (module.running_var, 0.5, 1.5),
      ):
        nn.init.uniform_(tensor, low, high)


def variables_of(module):
  """Our parameters and statistics from a torch module, by the names of its parts."""
  if isinstance(module, nn.ModuleList):
    parts = [variables_of(part) for part in module]
    stack = [
      jax.tree.map(lambda *a: np.stack(a), *trees) for trees in zip(*parts, strict=True)
    ]
    return tuple(stack)
  arrays = {name: t.detach().numpy() for name, t in module.named_parameters()}
  if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
    stats = {"mean": module.running_mean.numpy(), "var": module.running_var.numpy()}
    return {"scale": arrays["weight"], "bias": arrays["bias"]}, stats
  if isinstance(module, nn.Conv2d | nn.Linear):
    kernel = arrays.pop("weight")
    kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
    return arrays | {"kernel": kernel}, {}
  found = {name: variables_of(part) for name, part in module.named_children()}
  params = {name: value[0] for name, value in found.items()}
  return params, {name: value[1] for name, value in found.items() if value[1]}


@pytest.mark.parametrize(
  ("ours", "make", "size"),
  [
    (
      cifar_resnet(32, num_classes=10),
      lambda: torch_networks.ResNet((5,) * 3, 16, 10, False),
      32,
    ),
    (VGG(form="C", num_classes=10), lambda: torch_networks.VGG("C"), 32),
    (VGG(form="D", num_classes=10), lambda: torch_networks.VGG("D"), 32),
    (
      resnet50(num_classes=1000),
      lambda: torch_networks.ResNet((3, 4, 6, 3), 64, 1000, True),
      64,
    ),
  ],
  ids=["ResNet-32", "VGG-16 C", "VGG-16 D", "ResNet-50"],
)
def test_logits_are_those_of_torch(ours, make, size):
  torch.manual_seed(0)
  theirs = make().eval()
  randomize(theirs)
  params, stats = variables_of(theirs)
  inputs = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("float32")
  with torch.no_grad():
    expected = theirs(torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())).numpy()
  variables = {"params": params, "batch_stats": stats}
  abstract = jax.eval_shape(ours.init, jax.random.key(0), jnp.asarray(inputs))
  shapes = jax.tree.map(jnp.shape, variables)
  assert shapes == jax.tree.map(jnp.shape, abstract)
  found = jax.jit(ours.apply)(variables, inputs)
  spread = expected.std()
  assert spread > 1e-3
  np.testing.assert_allclose(found / spread, expected / spread, atol=1e-4)
