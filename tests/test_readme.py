"""The code blocks of README and of the manual run. A comment above each says so, or says why not."""

import re
import shlex
from pathlib import Path

import pytest

from dit_heads.cli import main

ROOT = Path(__file__).parent.parent
PAGES_THAT_RUN = ("guidance", "hunt", "loras", "vision", "soft-tokens")
MANUAL = ("README.md", *(f"docs/{name}.md" for name in PAGES_THAT_RUN))
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>.*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
BLOCKS = [
    {"page": page, **match.groupdict()}
    for page in MANUAL
    for match in BLOCK.finditer((ROOT / page).read_text())
]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
RUNNABLE = [block for block in BLOCKS if block["mark"] == "runs"]


def test_every_block_says_whether_it_runs():
    unmarked = [
        block["code"] for block in BLOCKS if not re.match(r"runs$|does not run: .", block["mark"] or "")
    ]
    assert unmarked == []
    assert {block["language"] for block in RUNNABLE} == {"python", "bash"}


@pytest.mark.filterwarnings("default")  # as for a reader, who may be told that CLIP reads 32 tokens
@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: f"{block['page']}-{block['language']}")
def test_a_runnable_block_runs(block, tmp_path, monkeypatch):
    """Here, since a process of its own imports torch for seconds; the commands of a shell one by one."""
    monkeypatch.chdir(tmp_path)
    if block["language"] == "python":
        exec(compile(block["code"], block["page"], "exec"), {"__name__": "__main__"})
        return
    for line in block["code"].splitlines():
        command, *arguments = shlex.split(line, comments=True)
        assert (command, main(arguments)) == ("dit-heads", 0)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}" for name in PAGES)])
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []
