"""The kernel that runs notebooks: always this very interpreter's, whatever others are installed as `python3`."""

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default


class OwnKernels(KernelSpecManager):
    """Knows ipykernel's own specification alone, which starts `sys.executable`."""

    @default("kernel_dirs")
    def _no_folders(self) -> list[str]:
        return []


class OwnKernelManager(AsyncKernelManager):
    """Starts what `OwnKernels` knows."""

    @default("kernel_spec_manager")
    def _own_kernels(self) -> KernelSpecManager:
        return OwnKernels(parent=self)
