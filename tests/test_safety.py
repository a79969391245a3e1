"""Loading a file never runs what is inside it: the syntax trees hold nothing that could."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("rlpg", "envs", "agents", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)

MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
}
# What a process gives to the processes that it starts: nothing of it has been a file.
WITHIN_ONE_PROGRAM = {"rlpg/verbs/several.py": ["pickle"]}
BUILTINS = {"eval", "exec", "compile", "__import__"}
LOADERS = {
    ("torch", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("jit", "load"),
    ("hub", "load"),
}


def dangers(tree: ast.AST) -> list[str]:
    """Each use of something that runs code from data, as `line: what`."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                hits = [alias.name for alias in names if alias.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                hits = [module]
            case ast.ImportFrom(module=str(module), names=names):
                hits = [a.name for a in names if (module.split(".")[-1], a.name) in LOADERS]
            case ast.Name(id=name, ctx=ast.Load()) if name in BUILTINS:  # a field may be called so
                hits = [name]
            case ast.Attribute(value=ast.Name(id="builtins"), attr=name) if name in BUILTINS:
                hits = [name]
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
                hits = [f"{owner}.{name}"] if (owner, name) in LOADERS else []
            case ast.keyword(arg="allow_pickle", value=value):
                safe = isinstance(value, ast.Constant) and value.value is False
                hits = [] if safe else ["allow_pickle"]
            case _:
                hits = []
        found += [f"{getattr(node, 'lineno', '?')}: {hit}" for hit in hits]
    return found


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 10


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_runs_from_data(path):
    found = [danger.partition(": ")[2] for danger in dangers(ast.parse(path.read_text()))]
    assert found == WITHIN_ONE_PROGRAM.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, pickle as p",
        "from pickle import loads",
        "import torch.utils, yaml",
        "eval('1')",
        "run = exec",
        "import builtins; builtins.eval('1')",
        "import torch; torch.load('x')",
        "from torch import load",
        "torch.jit.load('x')",
        "from torch.jit import load as innocent",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "__import__('pickle')",
    ],
)
def test_the_search_finds(source):
    assert dangers(ast.parse(source)) != []


@pytest.mark.parametrize(
    "source",
    ["np.load('x', allow_pickle=False)", "policy.eval()", "re.compile('x')", "rlpg.load('run')"],
)
def test_the_search_leaves_in_peace(source):
    assert dangers(ast.parse(source)) == []
