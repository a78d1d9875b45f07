"""Architecture and name of a tensor's GPU, for the choice of tiles; and this thread's current GPU."""

from collections.abc import Callable

import torch

from .interpreter import INTERPRETED
from .settings import settings

GPU = "cuda"  # device type of compiled kernels, also for AMD
# Index of this thread's current GPU: torch.cuda.current_device, without its check for initialisation.
current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


def architecture_of(device: torch.device) -> str:
    """Name of the architecture: "sm_90" for a Hopper GPU, "gfx942" for an MI300, "interpreter" if kernels are interpreted."""
    if settings.intercept is not None:
        return settings.architecture
    if INTERPRETED or device.type != GPU:
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def gpu_name(device: torch.device) -> str:
    """Name of a GPU, such as "NVIDIA H200"; empty if kernels are interpreted or launches intercepted."""
    if settings.gpu is not None:
        return settings.gpu
    if settings.intercept is not None or INTERPRETED or device.type != GPU:
        return ""
    return torch.cuda.get_device_name(device)
