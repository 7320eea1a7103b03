"""The script of `dsmemvp completion`, in bash."""

import contextlib
import io
import subprocess

import pytest

from dsmemvp.cli import main as cli


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "script.sh"
    path.write_text(out.getvalue())
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ev"], "evaluate"),
        (["train", "recipe.yaml", "model.quan"], "model.quantize="),
        (["train", "recipe.yaml", "method.lora_r"], "method.lora_rank="),
        (["export", "--pe"], "--peft"),
        (["score", "model.quan"], ""),
        (["train", "recipe.yaml", "model.quantize", "=", "n"], ""),
        (["train", "recipe.yaml", "data.train", "="], ""),
        (["data", ""], "show check"),
        (["evaluate", "recipe.yaml", "--b"], "--best --blind"),
    ],
)
def test_bash_offers_commands_options_and_keys(script, words, offered):
    given = " ".join(f"'{word}'" for word in ("dsmemvp", *words))
    program = f"source {script}; COMP_WORDS=({given}); COMP_CWORD={len(words)}; _dsmemvp 2>/dev/null;"
    done = subprocess.run(
        ["bash", "-c", program + ' echo "${COMPREPLY[*]}"'], capture_output=True, text=True, check=False
    )
    found = done.stdout.split()
    assert [word for word in found if word != "--help"] == offered.split(), done.stderr
