"""Two virtual CPU devices and caches of the tests' own, before JAX starts."""

import atexit
import os
import shutil
import tempfile

_cache = tempfile.mkdtemp(prefix="cifar_jax-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = _cache
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
