from lenet5.params import Params
from lenet5.record.champions import history, move_back, move_to
from lenet5.record.store import Store
from lenet5.record.versions import ensure_model


def test_a_persons_own_tags_of_the_model_are_no_reigns(store: Store, params: Params) -> None:
    name = params.register_.model_name
    ensure_model(store.client, name)
    model = str(store.client.create_logged_model(store.experiment_id, "onnx").model_id)
    store.client.create_model_version(name, f"models:/{model}", model_id=model)
    for key, value in (("champion notes", "a good one"), ("champion 7", "[7]"), ("champion of", '{"version": "1"}')):
        store.client.set_registered_model_tag(name, key, value)
    move_to(params, "1", "why not")
    (reign,) = history(params)
    assert (reign.version, reign.is_champion) == ("1", True)
    assert reign.reason.startswith("why not (by hand, ")


def test_a_champion_made_in_mlflows_ui_is_gone_back_to(store: Store, params: Params) -> None:
    name = params.register_.model_name
    ensure_model(store.client, name)
    for _ in range(3):
        model = str(store.client.create_logged_model(store.experiment_id, "onnx").model_id)
        store.client.create_model_version(name, f"models:/{model}", model_id=model)
    move_to(params, "1", "")
    store.client.set_registered_model_alias(name, "champion", "2")
    assert [one.version for one in history(params)] == ["1", "2"]
    move_to(params, "3", "")
    assert [one.version for one in history(params)] == ["1", "2", "3"]
    assert "moved without `lenet5`" in history(params)[1].reason
    assert move_back(params, "").version == "2"
    store.client.set_registered_model_alias(name, "champion", "1")
    move_to(params, "1", "so it stays")  # what is so already is put on record once
    assert [one.version for one in history(params)] == ["1", "2", "3", "2", "1"]
