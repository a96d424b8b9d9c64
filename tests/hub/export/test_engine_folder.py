"""The export that a command makes for itself: once, in a place it may write to, and of the folder as it is."""

import errno

import pytest

from seqloom.hub.export import engine_folder as module
from seqloom.hub.export.engine_folder import engine_folder
from seqloom.hub.export.output_folder import ExportError

pytest.importorskip("ctranslate2")


@pytest.fixture
def folder(tmp_path, taught_model, char_tokenizer):
    path = tmp_path / "space here" / "模型"
    model = taught_model()
    model.generation_config.update(max_new_tokens=12)
    model.save_pretrained(path)
    char_tokenizer("abcdefghijklmnop今天气很ABCDEFGHIJKLMNOP").save_pretrained(path)
    return path


def test_it_is_made_once_checked_and_renewed(folder, monkeypatch, caplog):
    made = engine_folder(folder)
    assert made == folder.with_name("模型-ctranslate2-float32")
    assert (made / "model.bin").is_file()
    assert "Exporting 模型 to " in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(module, "export_ctranslate2", pytest.fail)
        assert engine_folder(str(folder)) == made
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


def test_beside_a_folder_where_nobody_may_write_it_goes_into_the_cache(folder, tmp_path, monkeypatch):
    export, tried = module.export_ctranslate2, []

    def refuse_some(source, place, *, quantization):
        tried.append(place)
        if place.parent == folder.parent or "nowhere" in place.parts:
            raise OSError(errno.EROFS, "Read-only file system")
        return export(source, place, quantization=quantization)

    monkeypatch.setattr(module, "export_ctranslate2", refuse_some)
    monkeypatch.setattr(module.constants, "HF_HOME", str(tmp_path / "cache"))
    made = engine_folder(folder)
    assert (made.parent, tried) == (tmp_path / "cache" / "seqloom", [*module.places_for(folder, "float32")])
    assert engine_folder(folder) == made
    assert len(tried) == 2
    monkeypatch.setattr(module.constants, "HF_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ExportError, match="can be written; name another cache with HF_HOME"):
        engine_folder(folder)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(module, "export_ctranslate2", lambda *args, **options: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left"):
        engine_folder(folder)
