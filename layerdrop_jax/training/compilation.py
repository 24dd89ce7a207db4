"""Programs that were compiled once are kept, so that the second start does not wait for them."""

import hashlib
import pathlib
import platform

import jax

from layerdrop_jax.data.cache import cache_folder

# Seconds of compilation from which a program is kept: a small run has many that take less than a
# second each, which is the library's own limit.
WORTH_KEEPING = 0.2


def keep_compiled(where: str) -> None:
    """Lets JAX keep compiled programs in a folder and take them from there; call it first.

    A folder that JAX knows already ($JAX_COMPILATION_CACHE_DIR) stays, unless ``where`` names
    another or is ``off``. Programs for one CPU may hold instructions that another lacks, and hosts
    may share the disk, so each kind of processor has a folder of its own.

    Args:
      where: a folder, ``default`` (``compiled`` in `cache_folder`), or ``off``.

    Raises:
      ValueError: the folder cannot be made.
    """
    if where == "off":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if where == "default" and jax.config.jax_compilation_cache_dir:
        return
    folder = cache_folder("compiled") if where == "default" else pathlib.Path(where).expanduser()
    folder = folder.absolute() / _processor_key()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if where == "default":
            return  # a home that cannot be written: as it was without
        raise ValueError(f"--compiled={where} cannot be written: {error.strerror}") from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)


def _processor_key() -> str:
    """Names the kind of this host's processor, by what it can do."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    told = [x for x in lines if x.split(":")[0].strip() in ("model name", "flags", "Features")]
    text = "\n".join([platform.machine(), *sorted(set(told))])
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
