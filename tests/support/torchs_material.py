"""torch's own test inputs. Their import forbids later changes of torch's backend flags; the context manager undoes this."""

import pytest
import torch

pytest.importorskip("expecttest", reason="torch's test inputs need it")

with torch.backends.__allow_nonbracketed_mutation():
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import ModuleErrorEnum, ModuleInfo, module_db
    from torch.testing._internal.opinfo.core import OpInfo, SampleInput

__all__ = ["ModuleErrorEnum", "ModuleInfo", "OpInfo", "SampleInput", "module_db", "op_db"]
