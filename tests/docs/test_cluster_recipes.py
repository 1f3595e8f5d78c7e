"""The container recipe and the PyTorchJob of the cluster page: both parse, and agree with the package and with themselves."""

import re
import shlex

import pytest
import yaml

from emergence_train import cli, config
from support import ROOT

PAGE = (ROOT / "docs" / "how-to" / "cluster.md").read_text()
INSTRUCTIONS = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "ARG", "ENTRYPOINT", "CMD", "USER", "LABEL"}


def block(language: str) -> str:
    """The page's only code block of a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)
    return text


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments), comments left out and continued lines joined, as the format has them."""
    lines = [line for line in block("dockerfile").splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines()]


def test_the_container_recipe_parses_and_installs_what_is_tested():
    recipe = instructions()
    assert recipe[0][0] == "FROM" and {name for name, _ in recipe} <= INSTRUCTIONS
    python = re.fullmatch(r"python:(3\.\d+)-slim", recipe[0][1])
    assert python and python[1] in ("3.11", "3.12")  # those that the README names
    (source, target) = next(arguments for name, arguments in recipe if name == "COPY").split()
    assert (source, target) == (".", "/src")
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    installs = []
    for name, arguments in recipe:
        for part in arguments.split("&&") if name == "RUN" else ():
            words = shlex.split(part)  # raises where a quote is open
            if words[:2] == ["pip", "install"]:
                assert (
                    words[words.index("-c") + 1] == f"{target}/constraints.txt" and (ROOT / "constraints.txt").is_file()
                )
                installs.append(words[words.index("-c") + 2 :])
    assert installs[0] == ["torch"] and target in installs[1]
    assert "deepspeed" in pinned and "==" not in " ".join(sum(installs, []))  # versions stand in constraints.txt alone


def test_the_pytorchjob_agrees_with_itself_and_the_command_line():
    job = yaml.safe_load(block("yaml"))
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert worker["replicas"] == spec["elasticPolicy"]["minReplicas"] == spec["elasticPolicy"]["maxReplicas"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch" and isinstance(spec["nprocPerNode"], str)
    assert int(spec["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", container["workingDir"]}
    launcher, *words = container["command"]
    assert (launcher, words[:2]) == ("torchrun", ["-m", "emergence_train"])
    arguments = cli._parser().parse_args(words[2:])
    ranks = worker["replicas"] * int(spec["nprocPerNode"])
    training = config.load(ROOT / arguments.config, []).training
    assert training.batch % ranks == 0


@pytest.mark.parametrize("name", ["torch", "deepspeed", "triton", "numpy"])
def test_what_the_container_runs_is_pinned_once(name):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(f"{name}==")]
    assert len(lines) == 1
