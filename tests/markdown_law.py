"""Finds every place of a page where text that is not our own could become Markdown."""

import ast
import re

LABELLED = frozenset(
    [
        "markdown",
        "caption",
        "info",
        "warning",
        "error",
        "success",
        "title",
        "header",
        "subheader",
        "write",
        "button",
        "toggle",
        "checkbox",
        "expander",
        "tabs",
        "pills",
        "segmented_control",
        "radio",
        "selectbox",
        "multiselect",
        "select_slider",
        "slider",
        "number_input",
        "text_input",
        "form_submit_button",
        "download_button",
        "link_button",
        "page_link",
        "progress",
        "spinner",
        "popover",
        "toast",
        "metric",
        "text_area",
        "file_uploader",
        "date_input",
        "status",
        "badge",
    ]
)
"""Calls whose first argument is Markdown: a body or a label."""
ALL_ARGUMENTS = frozenset({"metric"})
CHOICES = frozenset({"pills", "segmented_control", "radio"})
"""Calls whose second argument, the options, is Markdown too, unless `format_func` makes it so."""
WORDS = frozenset({"help", "label", "body", "text", "caption", "title", "delta"})
MAKES_PLAIN = frozenset({"plain", "code", "prose"})
NUMBERS = frozenset(
    {
        "len",
        "dice_text",
        "protocol_text",
        "number_text",
        "span_text",
        "share_text",
        "duration",
        "apart_text",
        "distance_text",
        "mm_text",
    }
)
"""Calls that give numbers as text, or words of our own."""
METHODS = frozenset(
    ["partition", "split", "strip", "lstrip", "rstrip", "replace", "removeprefix", "removesuffix", "lower", "upper"]
)
SPEC = re.compile(r"[-+ ]?,?\d*,?(\.\d+)?[defgn%]|,")


Scope = tuple[ast.AST, ast.AST]
"""The innermost function around a call, else the module; and the module."""


def leaks(source: str) -> list[tuple[int, str]]:
    """Line and expression of every argument that is Markdown and neither literal, number nor made plain."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            scope = _scope(tree, node)
            found += [(a.lineno, ast.unparse(a)) for a in _markdown(node) if not _safe(a, scope, ())]
    return sorted(set(found))


def _markdown(call: ast.Call) -> list[ast.expr]:
    """Arguments of a call that Streamlit renders as Markdown."""
    keywords = {k.arg: k.value for k in call.keywords}
    if not isinstance(call.func, ast.Attribute):
        aliased = isinstance(call.func, ast.Name) and call.func.id in ("say", "draw")
        return list(call.args[:1]) if aliased else []
    name = call.func.attr
    found = [value for key, value in keywords.items() if key in WORDS and (name in LABELLED or key == "help")]
    if name == "image" and "caption" in keywords:
        found.append(keywords["caption"])
    if name in LABELLED:
        found += call.args if name in ALL_ARGUMENTS else call.args[:1]
    if name in CHOICES and len(call.args) > 1 and "format_func" not in keywords:
        found.append(call.args[1])
    if name in CHOICES and isinstance(keywords.get("format_func"), ast.Lambda):
        found.append(keywords["format_func"].body)
    return found[:-1] if name == "progress" and call.args else found


def _safe(node: ast.expr, scope: Scope, seen: tuple[str, ...]) -> bool:
    def safe(other: ast.expr) -> bool:
        return _safe(other, scope, seen)

    match node:
        case ast.Constant():
            return True
        case ast.JoinedStr(values=values):
            return all(safe(value) for value in values)
        case ast.FormattedValue(value=value, format_spec=spec):
            numeric = isinstance(spec, ast.JoinedStr) and SPEC.fullmatch(
                "".join(v.value if isinstance(v, ast.Constant) else "1" for v in spec.values)
            )  # type: ignore[misc]
            return bool(numeric) or safe(value)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return safe(left) and safe(right)
        case ast.BinOp(op=ast.Sub() | ast.Div() | ast.FloorDiv()):
            return True  # a number, or an error
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return True
        case ast.IfExp(body=body, orelse=orelse):
            return safe(body) and safe(orelse)
        case ast.BoolOp(values=values):
            return all(safe(value) for value in values)
        case ast.List(elts=elts) | ast.Tuple(elts=elts):
            return all(safe(e) for e in elts)
        case ast.Starred(value=value):
            return safe(value)
        case ast.GeneratorExp(elt=elt) | ast.ListComp(elt=elt):
            return safe(elt)
        case ast.Subscript(value=value):
            return safe(value)
        case ast.Attribute(value=ast.Name(id=name)) if name.isupper():
            return True
        case ast.Name(id=name):
            return name.isupper() or (name not in seen and _assigned(name, scope, seen))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            handed = any(isinstance(a, ast.Name) and a.id == "plain" for a in arguments)  # it makes its own text plain
            return handed or name in MAKES_PLAIN | NUMBERS or (name not in seen and _returns(name, scope, seen))
        case ast.Call(func=ast.Attribute(value=value, attr="join"), args=[only]):
            return safe(value) and safe(only)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="get")) if name.isupper():
            return True
        case ast.Call(func=ast.Attribute(value=value, attr=method), args=arguments) if method in METHODS:
            return safe(value) and all(safe(a) for a in arguments)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return safe(value) and all(safe(a) for a in node.args)
    return False


def _assigned(name: str, scope: Scope, seen: tuple[str, ...]) -> bool:
    """Whether all that a name is given in its scope is safe, and it is given something there."""
    given: list[ast.expr] = []
    for node in ast.walk(scope[0]):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    given.append(node.value)
                elif name in _names(target):
                    if not (isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)):
                        return False
                    if len(target.elts) != len(node.value.elts):
                        return False
                    given += [
                        v
                        for t, v in zip(target.elts, node.value.elts, strict=True)
                        if isinstance(t, ast.Name) and t.id == name
                    ]
        elif isinstance(node, ast.AugAssign | ast.AnnAssign) and isinstance(node.target, ast.Name):
            if node.target.id == name and node.value is not None:
                given.append(node.value)
        elif isinstance(node, ast.For | ast.comprehension) and name in _names(node.target):
            sources = _sources(node.target, node.iter, name, scope)
            if sources is None:
                return False
            given += sources
        elif isinstance(node, ast.arg) and node.arg == name:
            return False
    return bool(given) and all(_safe(value, scope, (*seen, name)) for value in given)


def _sources(target: ast.expr, iterated: ast.expr, name: str, scope: Scope) -> list[ast.expr] | None:
    """What a loop over a table of ours gives to a name; None when it goes over something else."""
    match iterated:
        case ast.Name(id=table) if table.isupper():
            return [ast.Constant("")]
        case ast.Call(func=ast.Attribute(value=ast.Name(id=table), attr="items" | "values" | "keys")) if (
            table.isupper()
        ):
            return [ast.Constant("")]
        case ast.Call(func=ast.Name(id="range")):
            return [ast.Constant("")]
        case ast.Call(func=ast.Name(id="zip"), args=columns) if isinstance(target, ast.Tuple):
            pairs = zip(target.elts, columns, strict=True)
            return next((_sources(t, column, name, scope) for t, column in pairs if name in _names(t)), None)
        case ast.List(elts=rows) | ast.Tuple(elts=rows):
            if isinstance(target, ast.Name):
                return rows
            places = [k for k, t in enumerate(target.elts) if name in _names(t)]  # type: ignore[attr-defined]
            return [row.elts[k] for row in rows for k in places]  # type: ignore[attr-defined]
        case ast.Name(id=table):
            given = [
                n.value for n in ast.walk(scope[0]) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == table
            ]
            return (
                _sources(target, given[0], name, scope) if len(given) == 1 and isinstance(given[0], ast.List) else None
            )
    return None


def _names(target: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}


def _scope(tree: ast.AST, call: ast.Call) -> Scope:
    inside = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and any(n is call for n in ast.walk(f))]
    return min(inside, key=lambda f: (f.end_lineno or 0) - f.lineno, default=tree), tree


def _returns(name: str, scope: Scope, seen: tuple[str, ...]) -> bool:
    """Whether all that a function of the same file returns is safe."""
    for function in ast.walk(scope[1]):
        if isinstance(function, ast.FunctionDef) and function.name == name:
            given = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]
            return bool(given) and all(_safe(value, (function, scope[1]), (*seen, name)) for value in given)
    return False
