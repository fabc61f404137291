"""What numbers were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import jax


def hardware() -> str:
  """Names cores, device and versions."""
  device = jax.devices()[0]
  kind = processor() if device.platform == "cpu" else device.device_kind
  python = platform.python_version()
  return f"{os.cpu_count()} cores, {kind}, jax {jax.__version__}, Python {python}"


def processor() -> str:
  """Names the processor and its widest vector instructions, as far as known."""
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
  flags = fields.get("flags", "").split()
  name = fields.get("model name", platform.machine())
  family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
  known = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}
  widest = next((f" with {known[flag]}" for flag in known if flag in flags), "")
  return f"{name} ({family}){widest}"
