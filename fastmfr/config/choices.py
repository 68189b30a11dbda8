"""The fixed sets of strings that a setting may take. Nothing here needs torch, so that `--help` stays fast."""

from typing import Literal

AUTO = "auto"  # a value that is found when a run begins, and said then
Auto = Literal["auto"]
Precision = Literal["fp32", "tf32", "bf16"]
Engine = Literal["auto", "autograd", "rop"]
Memory = Literal["auto", "kept", "streaming"]
BatchNormStatistics = Literal["batch", "frozen", "per_domain"]
FreezableStatistics = Literal["batch", "frozen"]
Sharing = Literal["none", "per_domain"]
Mining = Literal["threshold", "share"]
Device = Literal["auto", "cpu", "cuda"]
Single = Literal["drop", "augment"]
Compile = Literal["auto", "on", "off"]
Decoder = Literal["auto", "cpu", "mixed", "nvjpeg", "pillow"]
Fit = Literal["crop", "pad", "stretch"]
Cache = Literal["auto", "gpu", "host", "none"]
Method = Literal["mfr", "first_order", "no_meta", "mldg"]
Backbone = Literal["mfr28", "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200"]
EXTERNAL = r"(timm|torchvision)/[\w.-]+|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"  # and package.module:factory
Margin = Literal["cosface", "arcface", "combined", "adaface", "magface", "arcface_insightface", "combined_insightface"]
Mirror = Literal["concat", "sum", "none"]
