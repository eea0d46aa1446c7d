import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from gampen_ray import cli, s3
from gampen_ray.commands import registry
from gampen_ray.commands.infer import InferConfig
from gampen_ray.commands.registry import Verb, load_verbs
from gampen_ray.commands.simulate import SimulateConfig
from gampen_ray.config import TrainConfig
from gampen_ray.config.base import build, load_toml


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('dataset = "d"\noutput = "r"\n[optimizer]\nepochs = 3\nbatch_size = 32\n')
    flags = ["--optimizer.epochs", "7", "--network.backbone.plan", '[8, "M", 16]', "--optimizer.batch-size=64"]
    _, settings = cli.parse(["train", str(path), *flags])
    assert isinstance(settings, TrainConfig)
    assert (settings.optimizer.epochs, settings.optimizer.batch_size) == (7, 64)
    assert settings.network.backbone.plan == (8, "M", 16)
    assert settings.dataset == "d"


def test_one_network_flag_changes_nothing_else_of_the_network() -> None:
    _, settings = cli.parse(["train", "--dataset", "d", "--output", "o", "--network.likelihood", "unit_variance"])
    assert settings.network == dataclasses.replace(TrainConfig(dataset="d", output="o").network, likelihood="unit_variance")


def test_text_fields_take_text_that_looks_like_a_number() -> None:
    _, settings = cli.parse(["simulate", "--output", "2026", "--seed", "5"])
    assert settings == SimulateConfig(output="2026", seed=5)


def test_lists_of_words_need_no_quotes() -> None:
    _, settings = cli.parse(["ingest", "--images", "i", "--output", "o", "--targets", "flux,radius"])
    assert settings.targets == ("flux", "radius")


def test_a_switch_needs_no_value() -> None:
    arguments = ["infer", "--bundle", "b", "--dataset", "d", "--output", "o"]
    for flags, value in (([], False), (["--mode-centred"], True), (["--mode-centred", "false"], False)):
        assert cli.parse([*arguments, *flags])[1].mode_centred is value


def test_verbose_may_stand_before_or_after_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    train = ["train", "--dataset", "d", "--output", "o"]
    for arguments, value in ((train, "0"), (["--verbose", *train], "1"), ([*train, "--verbose"], "1")):
        monkeypatch.setenv("GAMPEN_RAY_VERBOSE", "0")
        cli.parse(arguments)
        assert os.environ["GAMPEN_RAY_VERBOSE"] == value


def test_underscores_and_hyphens_are_the_same() -> None:
    arguments = ["infer", "--bundle", "b", "--dataset", "d", "--output", "o"]
    assert cli.parse([*arguments, "--num-passes", "4"]) == cli.parse([*arguments, "--num_passes", "4"])
    assert isinstance(cli.parse(arguments)[1], InferConfig)


@pytest.mark.parametrize("field", ["dataset", "output", "fine_tune.bundle"])
def test_unreachable_storage_is_exit_code_2_before_anything_starts(
    field: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "key"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    values = {"dataset": str(tmp_path), "output": str(tmp_path), field: "s3://galaxies/a"}
    assert cli.main(["train", *(f"--{name}={value}" for name, value in values.items())]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gampen-ray: error: {field}: s3://galaxies/a: the server failed 1 times in a row: ")
    assert "check AWS_ENDPOINT_URL and the network" in error
    assert error.count("\n") == 1


def test_the_program_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "simulate" in shown
    assert "gampen-ray config VERB" in shown


def test_program_error_is_exit_code_1_with_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: object) -> None:
        raise RuntimeError("not the user's")

    monkeypatch.setitem(registry.VERBS, "report", Verb(load_verbs()["report"].config, fails))
    assert cli.main(["report", "--evaluation", ".", "--output", "o"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interruption_is_exit_code_1_and_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(registry.VERBS, "report", Verb(load_verbs()["report"].config, interrupted))
    assert cli.main(["report", "--evaluation", ".", "--output", "o"]) == 1
    assert capsys.readouterr().err == "gampen-ray: interrupted; run the same command again to resume\n"


@pytest.mark.parametrize("verb", load_verbs())
def test_help_names_every_field_with_its_default(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    fields = load_verbs()[verb].leaves
    assert all(f"--{name.replace('_', '-')}" in shown for name in fields)
    assert shown.count("[default: ") + shown.count("[required]") == len(fields)


def test_help_is_there_without_importing_torch_or_ray() -> None:
    program = (
        "import sys\nfrom gampen_ray.cli import main\n"
        "try:\n    main(['train', '--help'])\n"
        "finally:\n    assert not {'torch', 'ray', 'galsim', 'numpy', 'pyarrow'} & set(sys.modules), 'slow import'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_has_a_group_of_flags_for_each_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    assert shown.index("\nfields:\n") < shown.index("\nnetwork.backbone:\n  A convolutional") < shown.index("\nresources:\n")
    assert 'extends = "OTHER.toml"' in " ".join(shown.split())


@pytest.mark.parametrize("verb", load_verbs())
def test_help_shows_what_is_required_first_and_what_few_need_last(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    shown, leaves = capsys.readouterr().out, load_verbs()[verb].leaves.values()
    places = {leaf.name: shown.index(f"\n  --{leaf.name.replace('_', '-')}") for leaf in leaves}
    ranks = [0 if leaf.required else 2 if leaf.advanced else 1 for leaf in sorted(leaves, key=lambda leaf: places[leaf.name])]
    assert ranks == sorted(ranks)
    titles = [title for title in ("required fields", "fields", "advanced fields") if f"\n{title}:\n" in shown]
    assert len(titles) >= len(set(ranks))


def test_help_has_whole_sentences_and_no_empty_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "maps of the sky) and with the posteriors of another seed." in " ".join(capsys.readouterr().out.split())
    for verb, title in (("footprint", "required fields"), ("describe", "advanced fields")):
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        assert title not in capsys.readouterr().out


def test_completion_is_sourced_as_help_says_and_knows_verbs_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    sourced = "source <(gampen-ray --completion bash)"
    assert sourced in " ".join(capsys.readouterr().out.split())
    script = f'gampen-ray() {{ "{sys.executable}" -m gampen_ray "$@"; }}\n{sourced}\ncomplete -p gampen-ray\n'
    words = {
        "sc": "scan-dropout",
        "conf": "config",
        "train --optimizer.ep": "--optimizer.epochs",
        "train --split.": "",
        "infer --verb": "--verbose",
        # The name of a file, which bash completes by itself.
        "infer --bundle ''": "",
    }
    for typed in words:
        script += (
            f'COMP_WORDS=(gampen-ray {typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _gampen_ray; echo "${{COMPREPLY[@]}}"\n'
        )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (
        ["complete -o default -F _gampen_ray gampen-ray", *words.values()],
        "",
    )


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'dataset = "d"\n[optimizer]\nepochs = 3\nbatch_size = 8\n[targets]\nflux = {transform = "log"}\nage = {}\n'
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.toml").write_text(
        'extends = "../base.toml"\noutput = "o"\n[optimizer]\nepochs = 5\n[targets]\nflux = {transform = "identity"}\n'
    )
    _, config = cli.parse(["train", str(tmp_path / "sub" / "own.toml"), "--seed", "2"])
    assert (config.dataset, config.optimizer.epochs, config.optimizer.batch_size, config.seed) == ("d", 5, 8, 2)
    # A field is replaced as a whole.
    assert list(config.targets) == ["flux"]


def test_a_circle_of_files_and_a_file_that_is_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, other in (("a", '"b.toml"'), ("b", '"a.toml"'), ("c", '"none.toml"'), ("d", "3")):
        (tmp_path / f"{name}.toml").write_text(f"extends = {other}\n")
    messages = {
        "a": "extends itself through",
        "c": "none.toml: no such file",
        "d": "extends: 3 is not allowed; give the name",
    }
    for name, message in messages.items():
        assert cli.main(["train", str(tmp_path / f"{name}.toml")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", load_verbs())
def test_the_printed_config_has_every_field_and_is_a_config(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = load_verbs()[verb]
    required = {name: "x" for name, leaf in found.leaves.items() if leaf.default is PydanticUndefined}
    with pytest.raises(SystemExit) as stopped:
        cli.main(["config", verb])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    usual = build(found.config, required)
    assert build(found.config, load_toml(text.encode(), "") | required) == usual
    # Also with all comments that are fields.
    fields = re.sub(r"^# (\w+ = )(?! )", r"\1", text, flags=re.MULTILINE)
    assert build(found.config, load_toml(fields.encode(), "") | required, recorded=True) == usual
    assert all(re.search(rf"^# {name.split('.')[-1]} = ", text, re.MULTILINE) for name in found.leaves)
    assert max(map(len, text.splitlines())) < 1000


def test_the_printed_config_sets_what_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.toml").write_text('dataset = "d"\n[targets]\n"a b" = {transform = "log"}\n')
    command = [str(tmp_path / "t.toml"), "--output", "o", "--optimizer.epochs", "7", "--mlflow", "sqlite:///m.db"]
    with pytest.raises(SystemExit):
        cli.main(["train", *command, "--print-config"])
    (tmp_path / "u.toml").write_text(capsys.readouterr().out)
    assert cli.parse(["train", str(tmp_path / "u.toml")]) == cli.parse(["train", *command])


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "data")
    command = ["simulate", "--output", output, "--num-galaxies", "300", "--galaxies-per-shard", "100", "--cutout-size", "16"]
    assert cli.main([*command, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["run:", "simulate would start a new run"]
    assert lines[1].split(maxsplit=1) == ["work:", "300 galaxies in 3 tasks"]
    assert lines[2].split(maxsplit=1) == ["writes:", output]
    assert not (tmp_path / "data").exists()
    assert cli.main([*command, "--resources.engine", "local"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--dry-run"]) == 0
    assert "simulate is complete; nothing would be done" in capsys.readouterr().out
    predict = ["infer", "--bundle", "builtin:kids-r", "--dataset", output, "--output", str(tmp_path / "out")]
    assert cli.main([*predict, "--dry-run"]) == 0
    assert f"reads:     bundle builtin:kids-r, dataset {output}\n" in (out := capsys.readouterr().out)
    assert "300 galaxies in " in out
    train = ["train", output, "--output", str(tmp_path / "out"), "--targets", "{flux = {}}"]
    train += ["--network.spatial-transformer.family", "none", "--network.backbone.plan", '[8, "M"]']
    assert cli.main([*train, "--dry-run"]) == 0
    assert f"reads:     dataset {output}\n" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_dry_run_finds_mistakes_and_other_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("")
    assert cli.main(["simulate", "--output", str(tmp_path / "data"), "--dry-run"]) == 2
    assert "already holds other files" in capsys.readouterr().err
    assert cli.main(["describe", "builtin:kids-r", "--dry-run"]) == 2
    assert "--dry-run: unknown flag" in capsys.readouterr().err


def test_the_next_command_is_one_for_what_was_written() -> None:
    following = load_verbs()["infer"].following
    run = {"output": "o", "posterior": "summary", "estimate": False}
    made = {"num_galaxies": 3, "has_truths": True}
    assert following(run, made) == following(run) == "gampen-ray view o"
    mixture = run | {"posterior": "mixture"}
    assert following(mixture, made) == "gampen-ray evaluate --catalog o --output EVALUATION"
    assert following(mixture, made | {"has_truths": False}) == following(mixture) == "gampen-ray view o"
    assert following(mixture, made | {"num_galaxies": 0}) == ""
    assert following(run | {"estimate": True}) == ""
