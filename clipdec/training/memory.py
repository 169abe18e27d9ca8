"""Peak memory of processes, on each system as it tells it."""

import sys

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_resident_mb(children=False):
    """Peak resident memory in MB of this process, or of the largest of its `children` that have ended, which Windows
    does not tell: 0.
    """
    if resource is None:
        return 0.0 if children else psutil.Process().memory_info().peak_wset / 1e6
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
