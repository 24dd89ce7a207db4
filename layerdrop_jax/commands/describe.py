"""A model in words: its parameters by module, its drop rates, its expected depth."""

import jax

from layerdrop_jax.models.params import abstract_params, count_params
from layerdrop_jax.runs.settings import Settings
from layerdrop_jax.step.dropping import describe_rates


def describe(settings: Settings) -> str:
    """Describes a config's model: its parameters with the exact total, and its drop rates.

    Tied tensors are one tensor and count once. Nothing is allocated.
    """
    params = abstract_params(settings.model)
    rows = [
        (".".join(part.key for part in path), leaf.shape, leaf.size)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    # One line a module: the leaves of a linear map or a norm belong together.
    modules = {}
    for name, shape, size in rows:
        module, leaf = name.rsplit(".", 1)
        shapes, total = modules.get(module, ([], 0))
        modules[module] = (shapes + [f"{leaf} {'x'.join(map(str, shape))}"], total + size)
    lines = [("module", "parameters", "shapes (a stack's layers first)")]
    lines += [(name, f"{total:,}", ", ".join(shapes)) for name, (shapes, total) in modules.items()]
    for stack in settings.model.stacks:
        lines.append((f"{stack}, whole", f"{count_params(params[stack]):,}", ""))
    lines.append(("total", f"{count_params(params):,}", ""))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    text = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in lines]
    text.append("")
    return "\n".join(text + describe_rates(settings))
