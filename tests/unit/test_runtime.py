from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from modelbake.config import Config, ModelSpec, load_config
from modelbake.errors import ConfigError
from modelbake.runtime import build_of, check_runtimes, list_runtimes, load_runtime
from modelbake.yamlfile import parse_yaml, raise_problems

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "ab" * 32
BASE = f"docker.io/library/python:3.11-slim-bookworm@{DIGEST}"
WORD = "expected a word of a command: text on one line"
PATH = "expected a URL path that begins with '/'"
LINE = "expected text on one line, without control characters"
PACKAGE = "expected a package's name, in lower case with '-', or a pattern of names such as nvidia-*"
PATTERN = "expected a path of installed files, relative to site-packages, or a pattern such as triton/**"
REASON = "expected a reason: text on one line"
GOOD: dict[str, str] = {
    "description": "sentence embeddings over HTTP",
    "base": BASE,
    "builds": "{cuda: requirements.cuda.txt, cpu: requirements.cpu.txt}",
    "app": "[server.py, lib/pooling.py]",
    "command": "[/opt/venv/bin/python, /app/server.py]",
    "port": "8000",
    "health": "/health",
    "env": '{HF_HUB_OFFLINE: "1"}',
}


def written(images: Path, folder: str = "embeddings", /, **keys: str | None) -> Path:
    """Write a runtime's folder with all its files; values stand as written, None leaves a key out."""
    directory = images / folder
    (directory / "lib").mkdir(parents=True)
    for file in ("server.py", "lib/pooling.py"):
        (directory / file).write_text("")
    (directory / "requirements.cuda.txt").write_text(
        "torch==1 --hash=sha256:aa\nnvidia-x==1 --hash=sha256:bb\n"
    )
    (directory / "requirements.cpu.txt").write_text(
        "torch==1+cpu --hash=sha256:cc\nWeb_Server==2 \\\n  --hash=sha256:dd\n"
    )
    entries = {**GOOD, **keys}
    text = "".join(f"{key}: {value}\n" for key, value in entries.items() if value is not None)
    (directory / "runtime.yaml").write_text(text)
    return directory


def refused(images: Path, name: str = "embeddings") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_runtime(images, name)
    return str(caught.value).replace(f"{images}/", "").splitlines()


def test_a_runtime_is_read(tmp_path: Path) -> None:
    directory = written(tmp_path)
    runtime = load_runtime(tmp_path, "embeddings")
    assert runtime.name == "embeddings"
    assert runtime.directory == directory
    assert runtime.description == "sentence embeddings over HTTP"
    assert runtime.base == BASE
    assert runtime.builds == {"cuda": "requirements.cuda.txt", "cpu": "requirements.cpu.txt"}
    assert runtime.app == ("server.py", "lib/pooling.py")
    assert runtime.command == ("/opt/venv/bin/python", "/app/server.py")
    assert runtime.port == 8000
    assert runtime.health == "/health"
    assert runtime.env == {"HF_HUB_OFFLINE": "1"}
    with pytest.raises(ValidationError):
        runtime.port = 1


def test_layers_and_slimming_are_read(tmp_path: Path) -> None:
    written(
        tmp_path,
        layers='[[torch, "nvidia-*"], [web-server]]',
        slim='{remove: {"triton/**": no compiler}, stub: {a.so: one GPU}, keep: ["torch/include/**"]}',
    )
    runtime = load_runtime(tmp_path, "embeddings")
    assert runtime.layers == (("torch", "nvidia-*"), ("web-server",))
    assert runtime.slim.remove == {"triton/**": "no compiler"}
    assert (runtime.slim.stub, runtime.slim.keep) == ({"a.so": "one GPU"}, ("torch/include/**",))


def test_only_what_has_to_be_said_has_to_be_said(tmp_path: Path) -> None:
    written(tmp_path, builds=None, app=None, env=None)
    runtime = load_runtime(tmp_path, "embeddings")
    assert (runtime.builds, runtime.app, runtime.env) == ({}, (), {})
    assert (runtime.needs, runtime.single, runtime.architectures) == ({}, (), ())
    assert runtime.offers("cuda")
    assert runtime.offers("cpu")


def test_what_a_runtime_needs_is_read(tmp_path: Path) -> None:
    needs = '{chat template: [a.jinja, "*/b.json"]}'
    written(tmp_path, needs=needs, single="[chat template]", architectures='["*ForCausalLM"]')
    runtime = load_runtime(tmp_path, "embeddings")
    assert runtime.needs == {"chat template": ("a.jinja", "*/b.json")}
    assert runtime.single == ("chat template",)
    assert runtime.architectures == ("*ForCausalLM",)


def test_runtimes_are_the_folders_with_a_runtime_file(tmp_path: Path) -> None:
    written(tmp_path, "b")
    written(tmp_path, "a")
    (tmp_path / "builder").mkdir()
    (tmp_path / "runtime.yaml").write_text("")
    assert list_runtimes(tmp_path) == ["a", "b"]
    with pytest.raises(ConfigError, match=r"absent: cannot be read \(No such file"):
        list_runtimes(tmp_path / "absent")


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("port", "80", "6:7: port: expected a port from 1024 to 65535, got the number 80"),
        ("port", '"8000"', '6:7: port: expected a port from 1024 to 65535, got "8000"'),
        ("health", "x", f'7:9: health: {PATH}, got "x"; did you mean "/x"?'),
        ("command", "[]", "5:10: command: expected at least one item"),
        ("command", "python", '5:10: command: expected a list, got "python"; write ["python"]'),
        ("command", "[python, 1]", f"5:19: command[1]: {WORD}, got the number 1;"
         ' write "1" in quotes'),
        ("command", '["a\\nRUN id"]', f'5:11: command[0]: {WORD}, got "a\\nRUN id"'),
        ("builds", "{gpu: requirements.cuda.txt}",
         "3:10: builds.gpu: expected one of cuda, cpu; got \"gpu\"; did you mean 'cuda'?"),
        ("builds", "{cpu: requirements.cpu}",
         "3:15: builds.cpu: no file \"requirements.cpu\"; did you mean 'requirements.cpu.txt'?"),
        ("builds", "{cpu: ../x.txt}",
         '3:15: builds.cpu: expected a relative file name such as server.py, got "../x.txt"'),
        ("app", "[sever.py]", "4:7: app[0]: no file \"sever.py\"; did you mean 'server.py'?"),
        ("app", "[lib]", '4:7: app[0]: no file "lib"'),
        ("app", "[.env]", '4:7: app[0]: expected a relative file name such as server.py, got ".env"'),
        ("env", "{HF_TOKEN: x}",
         "8:7: env.HF_TOKEN: this names a secret, and everyone who pulls the image could read it;"
         " give it to the container when it is started"),
        ("env", "{A: off}", "8:10: env.A: off is a boolean for some YAML readers and not for others;"
         ' write "off" in quotes, or true or false'),
        ("needs", "{Tokenizer: [a]}",
         "9:9: needs.Tokenizer: expected what a runtime needs, in lower-case words such as tokenizer,"
         ' got "Tokenizer"'),
        ("needs", "{tokenizer: []}", "9:20: needs.tokenizer: expected at least one item"),
        ("needs", "{tokenizer: a.json}",
         '9:20: needs.tokenizer: expected a list, got "a.json"; write ["a.json"]'),
        ("needs", "{tokenizer: [/a]}",
         "9:21: needs.tokenizer[0]: expected a relative file name pattern such as *.safetensors, got \"/a\";"
         " patterns are relative to the repository: leave the first '/' or './' out"),
        ("single", "[weights]", '9:10: single[0]: "weights" is none of `needs`'),
        ("single", "weights", '9:9: single: expected a list, got "weights"; write ["weights"]'),
        ("architectures", "[A-B]",
         "9:17: architectures[0]: expected a class name or its pattern, such as *ForCausalLM, got \"A-B\""),
        ("layers", "[torch]", '9:10: layers[0]: expected a list, got "torch"; write ["torch"]'),
        ("layers", "[[]]", "9:10: layers[0]: expected at least one item"),
        ("layers", "[[Torch]]", f'9:11: layers[0][0]: {PACKAGE}, got "Torch"; did you mean "torch"?'),
        ("layers", "[[troch]]", "9:11: layers[0][0]: no package of requirements.cuda.txt,"
         " requirements.cpu.txt is called \"troch\"; did you mean 'torch'?"),
        ("layers", '[[torch], ["cuda-*"]]', "9:20: layers[1][0]: no package of requirements.cuda.txt,"
         ' requirements.cpu.txt is called "cuda-*"'),
        ("slim", "{keep: [/a]}", f'9:15: slim.keep[0]: {PATTERN}, got "/a"'),
        ("slim", '{remove: {"triton/**": ""}}', f'9:30: slim.remove."triton/**": {REASON}, got ""'),
        ("slim", "{stub: {../a: b}}", f'9:15: slim.stub."../a": {PATTERN}, got "../a"'),
        ("slim", "{remov: {}}", "9:8: slim.remov: unknown key; did you mean 'remove'?"),
        ("description", '"a\\nb"', f'1:14: description: {LINE}, got "a\\nb"'),
        ("port", None, "1:1: port: required key missing"),
        ("comand", "[a]", "9:1: comand: unknown key; did you mean 'command'?"),
    ],
)  # fmt: skip
def test_each_wrong_value_is_reported(tmp_path: Path, key: str, value: str | None, line: str) -> None:
    written(tmp_path, **{key: value})
    assert refused(tmp_path) == [f"embeddings/runtime.yaml:{line}"]


@pytest.mark.parametrize("layers", [None, "[[absent]]"])
@pytest.mark.parametrize("name", ['"a\\0"', "../outside.txt", "absent.txt", "1", "lib", "link.txt"])
def test_a_file_name_that_is_wrong_is_one_problem(tmp_path: Path, name: str, layers: str | None) -> None:
    (tmp_path / "outside.txt").write_text("torch>=2\n")
    directory = written(tmp_path, builds=f"{{cuda: {name}}}", layers=layers)
    (directory / "link.txt").symlink_to(tmp_path / "outside.txt")
    (said,) = refused(tmp_path)
    assert said.startswith("embeddings/runtime.yaml:3:16: builds.cuda: ")
    assert "torch" not in said


def test_an_unpinned_base_says_how_to_pin_it(tmp_path: Path) -> None:
    written(tmp_path, base="python:3.11")
    (said,) = refused(tmp_path)
    assert said.startswith("embeddings/runtime.yaml:2:7: base: expected an image pinned by its digest")
    assert said.endswith("shows the digest: write python:3.11@sha256:...")


def test_a_package_without_a_hash_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    directory = written(tmp_path)
    (directory / "requirements.cpu.txt").write_text("# mine\nweb==1 --hash=sha256:aa\ntorch>=2\nnumpy\n")
    assert refused(tmp_path) == [
        'embeddings/runtime.yaml:3:44: builds.cpu: requirements.cpu.txt:3: "torch>=2" has no'
        " --hash=sha256:... (nor have 1 more), and nothing is installed without one;"
        " `uv pip compile --generate-hashes` writes them"
    ]
    (directory / "requirements.cpu.txt").write_text("a @ https://me:s3cret@example.com/a.whl\n")
    (line,) = refused(tmp_path)
    assert '"a @ https" has no --hash' in line and "s3cret" not in line
    (directory / "requirements.cpu.txt").write_text("torch==2 --hash=sha256:aa\n")
    assert load_runtime(tmp_path, "embeddings").builds, "control"
    (directory / "requirements.cpu.txt").write_bytes(b"\xff")
    (line,) = refused(tmp_path)
    assert line.endswith('builds.cpu: "requirements.cpu.txt" cannot be read: it is not UTF-8 text')


def test_a_file_behind_a_link_is_refused(tmp_path: Path) -> None:
    directory = written(tmp_path)
    (directory / "server.py").unlink()
    (directory / "server.py").symlink_to("/etc/passwd")
    assert refused(tmp_path) == ['embeddings/runtime.yaml:4:7: app[0]: "server.py" is behind a symbolic link']
    (directory / "server.py").unlink()
    (directory / "server.py").write_text("")
    (directory / "lib").rename(tmp_path / "elsewhere")
    (directory / "lib").symlink_to(tmp_path / "elsewhere")
    assert refused(tmp_path) == [
        'embeddings/runtime.yaml:4:18: app[1]: "lib/pooling.py" is behind a symbolic link'
    ]


@pytest.mark.parametrize("name", ["embedding", "..", "", "../embeddings", "a\n", "builder"])
def test_an_unknown_runtime(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    (said,) = refused(tmp_path, name)
    assert said.startswith(f"{tmp_path}: no runtime ")
    assert said.endswith(
        "did you mean 'embeddings'?" if name in {"embedding", "../embeddings"} else "; there are embeddings"
    )


# --- models and their runtimes ---------------------------------------------------------------------------


def config(tmp_path: Path, defaults: str, **models: str) -> Config:
    lines = ["registry: r.io", f"defaults: {defaults}", "models:"]
    for name, keys in models.items():
        lines.append(f'  {name}: {{version: "1.0.0", source: "hf://a/b"{", " if keys else ""}{keys}}}')
    path = tmp_path / "models.yaml"
    path.write_text("\n".join(lines))
    return load_config(path)


def test_models_and_runtimes_that_fit(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path, "plain", builds="{}")
    found = check_runtimes(
        config(
            tmp_path,
            "{runtime: embeddings}",
            a="",
            b="device: any",
            c="device: cpu",
            d="runtime: plain",
            e="runtime: plain, device: cpu",
        ),
        tmp_path,
    )
    assert sorted(found) == ["embeddings", "plain"]


def test_models_and_runtimes_that_do_not_fit(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path, "on-cpu", builds="{cpu: requirements.cpu.txt}")
    written(tmp_path, "on-cuda", builds="{cuda: requirements.cuda.txt}")
    asked = config(
        tmp_path,
        "{runtime: embedings, device: any}",
        by_default="",
        again="",
        other="runtime: nothing-like-it",
        one="runtime: on-cpu",
        two="runtime: on-cpu, device: cuda",
        three="runtime: on-cuda, device: cpu",
        fine="runtime: on-cpu, device: cpu",
    )
    with pytest.raises(ConfigError) as caught:
        check_runtimes(asked, tmp_path)
    said = caught.value.message.replace(f"{tmp_path}/", "").splitlines()
    there_are = "there are embeddings, on-cpu, on-cuda"
    only_cpu = "needs the cuda build, and runtime on-cpu offers only cpu; write `device: cpu`"
    only_cuda = (
        "needs the cpu build, and runtime on-cuda offers only cuda; write `device: cuda` or `device: any`"
    )
    assert said == [
        "models.yaml:2:21: defaults.runtime: no runtime \"embedings\"; did you mean 'embeddings'?",
        f"models.yaml:2:40: defaults.device: `device: any` {only_cpu}",
        f'models.yaml:6:58: models.other.runtime: no runtime "nothing-like-it"; {there_are}',
        f"models.yaml:8:72: models.two.device: `device: cuda` {only_cpu}",
        f"models.yaml:9:75: models.three.device: `device: cpu` {only_cuda}",
    ]


def test_problems_of_models_and_of_runtime_files_are_reported_together(tmp_path: Path) -> None:
    written(tmp_path, port="80")
    written(tmp_path, "other", health="x")
    asked = config(tmp_path, "{}", a="runtime: embeddings", b="runtime: other", c="runtime: none-such")
    with pytest.raises(ConfigError) as caught:
        check_runtimes(asked, tmp_path)
    said = caught.value.message.replace(f"{tmp_path}/", "").splitlines()
    assert [line.split(": ")[0] for line in said] == [
        "models.yaml:6:54",
        "embeddings/runtime.yaml:6:7",
        "other/runtime.yaml:7:9",
    ]
    with pytest.raises(ConfigError) as caught:
        check_runtimes(config(tmp_path, "{}", a="runtime: embeddings"), tmp_path)
    assert caught.value.message.endswith("port: expected a port from 1024 to 65535, got the number 80")


def test_a_config_that_was_not_read_from_a_file_can_be_checked_too(tmp_path: Path) -> None:
    spec = ModelSpec(name="m", version="1.0.0", source="hf://a/b", runtime="absent")
    asked = Config(path=Path("models.yaml"), registry="r.io", models={"m": spec})
    with pytest.raises(ConfigError) as caught:
        check_runtimes(asked, tmp_path)
    assert caught.value.message == 'models.yaml:1:1: models.m.runtime: no runtime "absent"; there are none'


def test_a_runtime_of_ones_own_is_a_path(tmp_path: Path) -> None:
    images, services = tmp_path / "images", tmp_path / "team" / "services"
    written(images)
    own = written(services, "chat")
    services.parent.joinpath("models.yaml").touch()
    asked = config(services.parent, "{}", a="runtime: ./services/chat", b="runtime: embeddings")
    found = check_runtimes(asked, images)
    assert sorted(found) == ["./services/chat", "embeddings"]
    assert (found["./services/chat"].name, found["./services/chat"].directory) == ("chat", own)
    (own / "server.py").unlink()
    absent = config(services.parent, "{}", a="runtime: ./services/chat", b="runtime: ./services/cat")
    with pytest.raises(ConfigError) as caught:
        check_runtimes(absent, images)
    said = caught.value.message.replace(f"{services.parent}/", "").splitlines()
    assert said == [
        'models.yaml:5:54: models.b.runtime: there is no "./services/cat/runtime.yaml" beside models.yaml',
        'services/chat/runtime.yaml:4:7: app[0]: no file "server.py"',
    ]


def test_the_documented_runtime_of_ones_own_is_a_good_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/custom-runtime.md").read_text()
    blocks = dict(re.findall(r"`([a-z./-]+)`:\n\n```\w*\n(.*?)```", text, re.DOTALL))
    assert set(blocks) == {"models.yaml", "services/chat/runtime.yaml", "services/chat/app.py"}
    for name, content in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "services/chat/requirements.txt").touch()
    found = check_runtimes(load_config(tmp_path / "models.yaml"), ROOT / "images")
    assert found["./services/chat"].port == 5000
    compile(blocks["services/chat/app.py"], "app.py", "exec")


# --- what serves nothing ---------------------------------------------------------------------------------

DATA: dict[str, str | None] = {
    **dict.fromkeys(GOOD),
    "description": "weights",
    "base": BASE,
    "serves": "false",
}


def test_a_runtime_that_serves_nothing(tmp_path: Path) -> None:
    written(tmp_path, "weights", **DATA)
    runtime = load_runtime(tmp_path, "weights")
    assert (runtime.serves, runtime.port, runtime.health) == (False, None, None)
    assert runtime.command == ("--verify",)
    assert load_runtime(ROOT / "images", "weights").serves is False
    check_runtimes(config(tmp_path, "{}", m="runtime: weights"), tmp_path)


def test_what_serves_nothing_cannot_be_asked(tmp_path: Path) -> None:
    written(tmp_path, "weights", **DATA)
    with pytest.raises(ConfigError) as caught:
        check_runtimes(config(tmp_path, "{}", m="runtime: weights, smoke: {checks: [{get: /x}]}"), tmp_path)
    said = caught.value.message.replace(f"{tmp_path}/", "")
    words = "runtime weights serves nothing, so nothing can be asked: leave `checks` out"
    assert said == f"models.yaml:4:70: models.m.smoke: {words}"


@pytest.mark.parametrize(
    ("defaults", "smoke", "said"),
    [
        ("{}", "{require_gpu: true}", "on a GPU or elsewhere: leave `require_gpu` out"),
        ("{}", "{limits: {max_gpu_memory: 1 MB}}", "so nothing is measured: leave `limits` out"),
        ("{}", "{tolerance: {load: '1%'}}", "so nothing is measured: leave `tolerance` out"),
        ("{checks: [{get: /x}]}", "{}", "so nothing can be asked: write `checks: []` in the `smoke` of m"),
        (
            "{require_gpu: true}",
            "{}",
            "on a GPU or elsewhere: write `require_gpu: false` in the `smoke` of m",
        ),
    ],
)
def test_what_serves_nothing_is_neither_asked_nor_measured(
    tmp_path: Path, defaults: str, smoke: str, said: str
) -> None:
    written(tmp_path, "weights", **DATA)
    with pytest.raises(ConfigError) as caught:
        check_runtimes(
            config(tmp_path, f"{{smoke: {defaults}}}", m=f"runtime: weights, smoke: {smoke}"), tmp_path
        )
    (line,) = caught.value.message.splitlines()
    assert line.endswith(f"models.m.smoke: runtime weights serves nothing, {said}")


def test_what_the_defaults_measure_is_passed_over_where_nothing_serves(tmp_path: Path) -> None:
    written(tmp_path, "weights", **DATA)
    written(tmp_path, "embeddings")
    smoke = "{limits: {min_throughput: 5}, tolerance: {load: '1%'}, require_gpu: true, checks: [{get: /x}]}"
    defaults = f"{{smoke: {smoke}}}"
    none = "smoke: {checks: [], require_gpu: false}"
    check_runtimes(config(tmp_path, defaults, m=f"runtime: weights, {none}"), tmp_path)
    with pytest.raises(ConfigError, match="`limits: min_throughput` is measured by repeating"):  # control
        check_runtimes(config(tmp_path, defaults, m=f"runtime: embeddings, {none}"), tmp_path)


@pytest.mark.parametrize(
    ("key", "smoke"),
    [
        ("max_latency", "{limits: {max_latency: 1}}"),
        ("min_throughput", "{limits: {min_throughput: 1}, checks: [{get: /no, status: 404}]}"),
    ],
)
def test_what_no_run_can_measure_is_refused(tmp_path: Path, key: str, smoke: str) -> None:
    written(tmp_path, "embeddings")
    with pytest.raises(ConfigError) as caught:
        check_runtimes(config(tmp_path, "{}", m=f"runtime: embeddings, smoke: {smoke}"), tmp_path)
    said = f"`limits: {key}` is measured by repeating a check that is meant to succeed, and none (of a status"
    assert caught.value.message.endswith(f": models.m.smoke: {said} from 200 to 299) is declared")
    answered = "{limits: {max_latency: 1, min_throughput: 1}, checks: [{get: /h}]}"
    check_runtimes(config(tmp_path, "{}", m=f"runtime: embeddings, smoke: {answered}"), tmp_path)  # control


def test_what_serves_nothing_has_no_server(tmp_path: Path) -> None:
    written(tmp_path, "weights", **{**DATA, "port": "8000", "command": "[true]"})
    assert [line.partition(": ")[2] for line in refused(tmp_path, "weights")] == [
        "command: unknown key; a runtime with `serves: false` has no server",
        "port: unknown key; a runtime with `serves: false` has no server",
    ]
    written(tmp_path, serves='"no"')
    assert [line.partition(": ")[2] for line in refused(tmp_path)] == [
        'serves: expected true or false, got "no"'
    ]


@pytest.mark.parametrize(("device", "build"), [("cuda", "cuda"), ("any", "cuda"), ("cpu", "cpu")])
def test_builds_of_devices(device: str, build: str) -> None:
    spec = ModelSpec.model_validate(
        {"name": "m", "version": "1.0.0", "source": "hf://a/b", "runtime": "r", "device": device}
    )
    assert build_of(spec) == build


def test_the_runtimes_of_this_repository_serve_the_example() -> None:
    images = ROOT / "images"
    for name in list_runtimes(images):
        assert load_runtime(images, name).name == name
    check_runtimes(load_config(ROOT / "models.yaml"), images)


def test_the_runtimes_that_are_not_slimmed_are_said_to_be_so() -> None:
    said = re.findall(r"^Runtime `(\w+)` has no rules of its own", (ROOT / "docs/slim.md").read_text(), re.M)
    runtimes = [load_runtime(ROOT / "images", name) for name in list_runtimes(ROOT / "images")]
    assert said == [each.name for each in runtimes if each.layers and not each.slim.model_fields_set]


@settings(deadline=None)  # a busy machine is not a defect
@given(
    st.dictionaries(
        st.sampled_from(sorted(GOOD)) | st.text(max_size=5),
        st.text(alphabet='[]{},: "/ab.1\n\\', max_size=12),
        max_size=6,
    )
)
def test_any_runtime_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, str]
) -> None:
    images = tmp_path_factory.mktemp("images")
    directory = written(images)
    text = "".join(f"{key}: {value}\n" for key, value in {**GOOD, **entries}.items())
    (directory / "runtime.yaml").write_text(text, encoding="utf-8")
    try:
        load_runtime(images, "embeddings")
    except ConfigError as error:
        assert all(line.startswith(str(directory)) for line in error.message.splitlines())
    else:
        file = parse_yaml(text.encode(), Path("runtime.yaml"))
        raise_problems(file.path, file.problems)
