# Environment of every command of this project; source it: `. tools/env.sh`. What is already set is kept.
wam_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"

# Render without a screen. macOS has its own off-screen path and needs no choice.
if [ "$(uname -s)" = Linux ]; then export MUJOCO_GL="${MUJOCO_GL:-egl}"; fi

# glibc hands every large tensor back to the kernel, and the page faults of getting it again cost more than the
# arithmetic (softmax of 4x6x1040x1040: 122 ms without these lines, 24 ms with them). Memory is kept, up to 1 GiB free.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-1073741824}"
export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-67108864}"
export MALLOC_ARENA_MAX="${MALLOC_ARENA_MAX:-1}"

# Before version 0.12, jaxlib can go back to its older code generator for CPUs: the demo's step takes a sixth less time and
# half the memory, and without optimisation (as in tests) it compiles three times faster.
if (cd "$wam_root" && compgen -G "${WAM_VENV:-.venv}/lib/python*/site-packages/jaxlib-0.1[01].*") >/dev/null; then
  export XLA_FLAGS="${XLA_FLAGS:---xla_cpu_use_fusion_emitters=false}"
fi

# Compiled programs are kept between processes; the directory may be deleted at any time.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$wam_root/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="${JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES:--1}"

# Images for containers often switch bytecode files off: then every command compiles all that it imports, for seconds.
unset PYTHONDONTWRITEBYTECODE
