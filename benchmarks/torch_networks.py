"""The networks as eager torch defines them: to be timed, and compared with ours."""

import itertools

import torch  # pyright: ignore[reportMissingImports]

nn = torch.nn


def chain(name: str, depth: int, width: int, shape: tuple[int, ...]) -> nn.Sequential:
  """Returns the plain tanh network of `depth` layers with a kernel, 10 classes.

  Args:
    name: "mlp", or "cnn" with circular convolutions, the second and third of stride 2.
    depth: number of layers.
    width: units or channels.
    shape: channels, height and width of the images.
  """
  layers: list[nn.Module] = []
  if name == "mlp":
    sizes = [shape[0] * shape[1] * shape[2], *[width] * (depth - 1)]
    layers = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
      layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 10))
  channels = shape[0]
  for number in range(depth - 1):
    stride = 2 if number in (1, 2) else 1
    conv = nn.Conv2d(channels, width, 3, stride, 1, padding_mode="circular")
    layers, channels = [*layers, conv, nn.Tanh()], width
  return nn.Sequential(
    *layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(width * 16, 10)
  )


class Block(nn.Module):
  """Residual block: `convs` are (window, strides, width factor); torch's layers."""

  def __init__(self, inputs, width, strides, bottleneck):
    super().__init__()
    windows = ((1, 1, 1), (3, strides, 1), (1, 1, 4))
    windows = windows if bottleneck else ((3, strides, 1), (3, 1, 1))
    channels = inputs
    for number, (window, stride, factor) in enumerate(windows, 1):
      out, pad = width * factor, window // 2
      conv = nn.Conv2d(channels, out, window, stride, pad, bias=False)
      self.add_module(f"conv{number}", conv)
      self.add_module(f"norm{number}", nn.BatchNorm2d(out))
      channels = out
    self.length = len(windows)
    if strides != 1 or inputs != channels:
      self.conv_shortcut = nn.Conv2d(inputs, channels, 1, strides, bias=False)
      self.norm_shortcut = nn.BatchNorm2d(channels)

  def forward(self, x):
    """Convolutions with normalization, and the shortcut."""
    y, identity = x, x
    for number in range(1, self.length + 1):
      y = getattr(self, f"norm{number}")(getattr(self, f"conv{number}")(y))
      y = torch.relu(y) if number < self.length else y
    if hasattr(self, "conv_shortcut"):
      identity = self.norm_shortcut(self.conv_shortcut(x))
    return torch.relu(y + identity)


class ResNet(nn.Module):
  """Residual network with a small or a large stem; shortcuts are convolutions."""

  def __init__(self, stages, width, classes, large):
    super().__init__()
    self.large, self.num_stages = large, len(stages)
    window, strides = (7, 2) if large else (3, 1)
    self.stem = nn.Conv2d(3, width, window, strides, window // 2, bias=False)
    self.norm, channels = nn.BatchNorm2d(width), width
    for number, length in enumerate(stages):
      inner = width * 2**number
      out, strides = inner * (4 if large else 1), 2 if number else 1
      first = Block(channels, inner, strides, large)
      rest = nn.ModuleList(Block(out, inner, 1, large) for _ in range(length - 1))
      self.add_module(f"stage{number + 1}_first", first)
      self.add_module(f"stage{number + 1}_rest", rest)
      channels = out
    self.output = nn.Linear(channels, classes)

  def forward(self, x):
    """Maps `[batch, channels, height, width]` images to logits."""
    x = torch.relu(self.norm(self.stem(x)))
    x = nn.functional.max_pool2d(x, 3, 2, 1) if self.large else x
    for number in range(1, self.num_stages + 1):
      x = getattr(self, f"stage{number}_first")(x)
      for block in getattr(self, f"stage{number}_rest"):
        x = block(x)
    return self.output(x.mean((2, 3)))


class VGG(nn.Module):
  """VGG-16 with batch normalization, in form C or D."""

  def __init__(self, form):
    super().__init__()
    channels, self.form = 3, form
    for stage, (width, length) in enumerate(
      ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1
    ):
      for number in range(1, length + 1):
        window = 1 if form == "C" and number == 3 else 3
        conv = nn.Conv2d(channels, width, window, padding=1)
        self.add_module(f"conv{stage}_{number}", conv)
        self.add_module(f"norm{stage}_{number}", nn.BatchNorm2d(width))
        channels = width
    self.dense1 = nn.Linear(2048 if form == "C" else 512, 512)
    self.dense2, self.output = nn.Linear(512, 512), nn.Linear(512, 10)
    self.dense_norm1, self.dense_norm2 = nn.BatchNorm1d(512), nn.BatchNorm1d(512)

  def forward(self, x):
    """Maps `[batch, channels, height, width]` images to logits."""
    for stage, length in enumerate((2, 2, 3, 3, 3), 1):
      for number in range(1, length + 1):
        name = f"{stage}_{number}"
        x = getattr(self, f"norm{name}")(getattr(self, f"conv{name}")(x))
        x = torch.relu(x)
      x = nn.functional.max_pool2d(x, 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    x = self.dense_norm1(torch.relu(self.dense1(x)))
    x = self.dense_norm2(torch.relu(self.dense2(x)))
    return self.output(x)
