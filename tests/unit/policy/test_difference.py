"""What another policy says otherwise, by the names that documents have for it."""

from __future__ import annotations

from pathlib import Path

from gateway.policy import differences, load

OLD = """
models:
  tiny:
    replicas: [{url: "http://127.0.0.1:9001"}, {url: "http://127.0.0.1:9002"}]
    price: {output_usd_per_mtok: 0.35}
tenants:
  acme:
    class: chat
    keys: [{id: ci, sha256: "SHA1", limits: {usd_per_day: 5}}]
    limits: {requests_per_minute: 600, budget_usd: 50, max_output_tokens: 1000}
  rival: {}
classes:
  chat: {priority: 10, slo: {itl_p99_ms: 80}}
""".replace("SHA1", "a1" * 32)


def lines(tmp_path: Path, old: str, new: str) -> list[tuple[str, str | None, str | None]]:
    for name, text in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.yaml").write_text(text)
    return [(one.path, one.old, one.new) for one in differences(load(tmp_path / "old"), load(tmp_path / "new"))]


def test_each_changed_field_is_named_with_both_values(tmp_path: Path) -> None:
    """A limit that went, one that came, one that changed, a class's target: four lines, nothing else."""
    new = OLD.replace("requests_per_minute: 600, budget_usd: 50", "concurrent_requests: 8, budget_usd: 49.5")
    new = new.replace("itl_p99_ms: 80", "itl_p99_ms: 60")
    assert lines(tmp_path, OLD, new) == [
        ("tenants.acme.limits.requests_per_minute", "600", None),
        ("tenants.acme.limits.concurrent_requests", None, "8"),
        ("tenants.acme.limits.budget_usd", "50", "49.5"),
        ("classes.chat.slo.itl_p99_ms", "80", "60"),
    ]


def test_what_a_limit_does_is_part_of_it(tmp_path: Path) -> None:
    """A limit that is only audited now, one that gets a candidate, and those of a group that is new."""
    new = OLD.replace("requests_per_minute: 600", "requests_per_minute: {limit: 600, mode: soft, candidate: 300}")
    new = new.replace("usd_per_day: 5", "usd_per_day: {limit: 5, mode: audit}")
    new += "groups: {eu: {limits: {tokens_per_day: {limit: 1000, candidate: 900}}}}\n"
    assert lines(tmp_path, OLD, new) == [
        ("tenants.acme.keys.ci.limits.usd_per_day", "5", "{limit: 5, mode: audit}"),
        ("tenants.acme.limits.requests_per_minute", "600", "{limit: 600, mode: soft, candidate: 300}"),
        ("groups.eu", None, "{limits: {tokens_per_day: {limit: 1000, candidate: 900}}}"),
    ]


def test_tenants_replicas_and_keys_are_told_apart_by_name(tmp_path: Path) -> None:
    """Who came and who went is said whole; the order of replicas is no difference."""
    new = OLD.replace('{url: "http://127.0.0.1:9001"}, ', "").replace(
        '"http://127.0.0.1:9002"}', '"http://127.0.0.1:9002"}, {url: "http://127.0.0.1:9001"}, {url: "http://gpu:9000"}'
    )
    new = new.replace("  rival: {}", "  newcomer: {limits: {tokens_per_day: 1000}, time_zone: Europe/Berlin}")
    assert lines(tmp_path, OLD, new) == [
        ("models.tiny.replicas.'http://gpu:9000'", None, "{url: http://gpu:9000}"),
        ("tenants.rival", "{}", None),
        ("tenants.newcomer", None, "{limits: {tokens_per_day: 1000}, time_zone: Europe/Berlin}"),
    ]


def test_a_hash_is_never_shown(tmp_path: Path) -> None:
    """Another hash of a known key, and a key that is new: its id is public, what it was made of is not."""
    new = OLD.replace("a1" * 32, "b2" * 32).replace("usd_per_day: 5}}]", "usd_per_day: 5}}, {id: web, sha256: 'SHA'}]")
    found = lines(tmp_path, OLD, new.replace("SHA", "c3" * 32))
    assert found == [
        ("tenants.acme.keys.ci.sha256", "(hidden)", "(hidden, another one)"),
        ("tenants.acme.keys.web", None, "{id: web, sha256: (hidden)}"),
    ]


def test_comments_files_and_order_make_no_difference(tmp_path: Path) -> None:
    """The same documents in another order, with a comment, are the same policies."""
    head, tail = OLD.split("tenants:")
    assert lines(tmp_path, OLD, f"# later\ntenants:{tail}{head}") == []
