"""Arguments that every config of a training understands, and unknown ones, which are errors everywhere."""

import pytest

from tests.jobs import golden
from vitvlm.core import arguments
from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError

TRAININGS = [path for path in golden.CONFIGS if ":" not in path]
ALL = [*TRAININGS, *golden.ABLATIONS, *golden.EVALUATIONS]


@pytest.mark.parametrize("path", ALL)
def test_an_unknown_argument_is_an_error_everywhere(path):
    with pytest.raises(ConfigError, match=r"config argument 'nonsense=1': no such argument"):
        golden.load(path, "nonsense=1")


def changed(path, arg):
    """The fields in which a config with an argument differs, with their values."""

    def flat(section, prefix=""):
        for name, value in section.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    before = dict(flat(config_lib.plain(golden.load(path))))
    after = dict(flat(config_lib.plain(golden.load(path, arg))))
    assert after != before, "the argument is ignored"
    return {name: value for name, value in after.items() if before.get(name, ...) != value}


@pytest.mark.parametrize("path", TRAININGS)
def test_every_config_takes_a_source(path):
    fields = changed(path, "source=folder:somewhere")
    assert fields["data.source"] == "folder:somewhere"
    config = config_lib.plain(golden.load(path, "source=folder:somewhere"))
    assert not {"folder:somewhere"} ^ {
        section.get("source", "folder:somewhere") for section in (config["data"]["train"], config["data"]["eval"])
    }
    if config["task"]["name"] == "classify":
        assert config["model"]["num_classes"] == "data" or "imagenet" in path


@pytest.mark.parametrize("path", TRAININGS)
def test_every_config_takes_epochs_or_says_why_not(path):
    config = golden.load(path)
    if "stages" in config:
        with pytest.raises(ConfigError, match="each stage has its own length"):
            golden.load(path, "epochs=7")
    else:
        assert changed(path, "epochs=7")["total"] == "7 epochs"


@pytest.mark.parametrize("path", TRAININGS)
def test_every_config_takes_a_size_or_says_why_not(path):
    if path == "configs/flamingo.py":
        return  # "emoji" or "authors": what sizes there are
    if golden.load(path).get("image_size") is None:
        with pytest.raises(ConfigError, match="have one size"):
            golden.load(path, "size=56")
    else:
        assert changed(path, "size=56")["image_size"] == 56


@pytest.mark.parametrize("path", TRAININGS)
def test_every_config_takes_weights_to_begin_with(path):
    before = golden.load(path).get("init_from")
    if before is not None and "path" not in before:
        with pytest.raises(ConfigError, match="begins with several"):
            golden.load(path, "init=workdirs/other")
    else:
        assert changed(path, "init=workdirs/other")["init_from.path"] == "workdirs/other"


@pytest.mark.parametrize("path", TRAININGS)
def test_every_config_can_be_tiny(path):
    fields = changed(path, "debug")
    assert fields.get("total") == "4 steps" or "batch_size" in fields


def test_arguments_without_a_place_are_errors():
    with pytest.raises(ConfigError, match="epochs=-1: is not above 0"):
        golden.load("configs/vit_imagenet.py", "epochs=-1")
    with pytest.raises(ConfigError, match="size=-3: is not a number of pixels"):
        golden.load("configs/vit_imagenet.py", "size=-3")
    with pytest.raises(ConfigError, match="epochs=many: 'many' is not of type float"):
        golden.load("configs/vit_imagenet.py", "epochs=many")


def test_a_bare_part_is_one_of_the_configs_own():
    args = arguments.training("B/32,debug,epochs=3", variant="S/16")
    assert (args.variant, args.debug, args.common) == ("B/32", True, {"epochs": 3.0})
    with pytest.raises(ConfigError, match="'folder': no such argument"):
        arguments.training("folder", flexible=False)
