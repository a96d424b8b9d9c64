"""The export that a command makes for itself: once, in the cache, and of the folder as it is."""

import errno
import shutil

import pytest

from seqloom.hub.export import engine_folder as module
from seqloom.hub.export.engine_folder import engine_folder
from seqloom.hub.export.output_folder import ExportError

pytest.importorskip("ctranslate2")


@pytest.fixture
def folder(tmp_path, taught_model, char_tokenizer, monkeypatch):
    monkeypatch.setattr(module.constants, "HF_HOME", str(tmp_path / "cache"))
    path = tmp_path / "space here" / "模型"
    model = taught_model()
    model.generation_config.update(max_new_tokens=12)
    model.save_pretrained(path)
    char_tokenizer("abcdefghijklmnop今天气很ABCDEFGHIJKLMNOP").save_pretrained(path)
    return path


def test_it_is_made_once_checked_and_renewed(folder, monkeypatch, caplog):
    made = engine_folder(folder)
    assert (made.parent, made.name[:23]) == (folder.parents[1] / "cache" / "seqloom", "模型-ctranslate2-float32-"[:23])
    assert (made / "model.bin").is_file()
    assert "Exporting 模型 to " in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(module, "export_ctranslate2", pytest.fail)
        assert engine_folder(str(folder)) == made
    manifest = made / "seqloom_export.json"
    manifest.write_text(manifest.read_text().replace('"seqloom_version": "', '"seqloom_version": "of old '))
    assert engine_folder(folder) == made
    assert "of old" not in manifest.read_text()
    settings, before = folder / "generation_config.json", (made / "seqloom_export.json").read_text()
    settings.write_text(settings.read_text().replace('"max_new_tokens": 12', '"max_new_tokens": 9'))
    assert engine_folder(folder) == made
    after = (made / "seqloom_export.json").read_text()
    assert ('"max_decoding_length": 12' in before, '"max_decoding_length": 9' in after) == (True, True)

    weights = made / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ExportError, match=r"model\.bin is not as an export has written it, .* or move this one away\."):
        engine_folder(folder)
    made.rename(made.with_name("moved away"))
    assert engine_folder(folder) == made


def test_an_export_that_came_with_the_folder_proves_nothing(folder):
    """Its manifest vouches for itself alone; whoever wrote it may have written other weights."""
    made = engine_folder(folder)
    theirs = folder.with_name("模型-ctranslate2-float32")
    shutil.move(made, theirs)
    assert engine_folder(folder) == made
    assert (made / "model.bin").read_bytes() == (theirs / "model.bin").read_bytes()


def test_a_cache_that_cannot_be_written(folder, monkeypatch):
    def fail(number):
        def refuse(*args, **options):
            raise OSError(number, "refused")

        monkeypatch.setattr(module, "export_ctranslate2", refuse)

    fail(errno.EROFS)
    with pytest.raises(ExportError, match="cannot be written; name another cache with HF_HOME"):
        engine_folder(folder)
    fail(errno.ENOSPC)
    with pytest.raises(OSError, match="refused"):
        engine_folder(folder)
