"""Everything shown in README and docstrings runs."""

import doctest
import pydoc
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import negdiag_param

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", negdiag_param.__all__)
def test_docstring_examples(name):
    torch.manual_seed(0)
    public = {key: getattr(negdiag_param, key) for key in negdiag_param.__all__}
    namespace = {"torch": torch, "nn": nn, "parametrize": parametrize, **public}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    found = doctest.DocTestFinder().find(public[name], name, globs=namespace)
    results = [runner.run(test) for test in found]
    assert not any(result.failed for result in results)
    assert any(result.attempted for result in results)


def test_help_of_the_package_begins_with_all_names_on_one_screen():
    text = pydoc.plain(pydoc.render_doc(negdiag_param)).partition("\n\nPACKAGE CONTENTS")[0]
    listed = re.findall(r"^    (\w+) +\S", text, re.MULTILINE)
    assert set(negdiag_param.__all__) <= set(listed)
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_readme_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:  # each by itself
        exec(compile(block, "README.md", "exec"), {})


TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("tests/*/README.md"))]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(text):
    content = text.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", content)
    assert links
    assert all((text.parent / link).exists() for link in links)
    headings = re.findall(r"^#+ (.*)$", content, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", content)) <= anchors


def test_readme_names_all_that_is_public():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Public names")[2].partition("##")[0]
    assert all(f"`{name}`" in table for name in negdiag_param.__all__)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1600


def test_the_changelog_knows_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{negdiag_param.__version__}]" in text
