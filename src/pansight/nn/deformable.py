"""The deformable convolution: each sample of the kernel moves by an offset that the map itself says.

Dai et al.: Deformable Convolutional Networks, ICCV 2017 (offsets). Zhu, Hu, Lin, Dai: Deformable ConvNets v2, CVPR 2019
(modulated: each sample has a weight besides).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from pansight.errors import PansightError
from pansight.ops.fast import use_plain
from pansight.ops.fast.deformable_conv import deform_conv_by_sampling, deform_conv_by_sums


class DeformableConv(nn.Module):
    """A `kernel` × `kernel` deformable convolution that keeps the size of the map at stride 1.

    modulated: version 2, whose samples are weighted by a sigmoid. still: offsets start at zero, so that an untrained
    layer is an ordinary convolution (with weights of a half where it is modulated); else the convolution that says them
    starts as any other does in PyTorch.
    Channels of `offset`: two for each sample (row, column), in the order of torchvision, then the weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        modulated: bool = False,
        still: bool = True,
    ):
        super().__init__()
        if kernel % 2 == 0:
            raise PansightError(where="kernel of a deformable convolution", expected="an odd number", found=kernel)
        self.stride, self.dilation, self.modulated = stride, dilation, modulated
        self.padding = dilation * (kernel // 2)
        self.samples = kernel * kernel
        channels = (3 if modulated else 2) * self.samples
        self.offset = nn.Conv2d(inputs, channels, kernel, stride, self.padding, dilation)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if still:
            nn.init.zeros_(self.offset.weight)
            assert self.offset.bias is not None
            nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h', w'), in the dtype that the other convolutions have at this place."""
        said = self.offset(x)  # (B, 2 or 3 × samples, h', w')
        offsets = said[:, : 2 * self.samples]
        weights = said[:, 2 * self.samples :].sigmoid() if self.modulated else None
        # a graph samples by itself, too: other engines have no such convolution
        exporting = torch.compiler.is_exporting()
        by_itself = exporting or (x.device.type == "cpu" and not use_plain())
        with torch.autocast(x.device.type, enabled=False):  # positions need all digits of float32
            given = (x.float(), offsets.float(), self.weight.float(), None if self.bias is None else self.bias.float())
            mask = None if weights is None else weights.float()
            if by_itself:
                sampling = exporting or torch.is_grad_enabled()
                convolve = deform_conv_by_sampling if sampling else deform_conv_by_sums
                moved = convolve(*given, self.stride, self.padding, self.dilation, mask)
            else:
                stride, padding, dilation = ((n, n) for n in (self.stride, self.padding, self.dilation))
                moved = deform_conv2d(*given, stride, padding, dilation, mask)
        return moved.to(said.dtype)
