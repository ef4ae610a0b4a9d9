"""Documents that cannot be served: every fault is told with file, line, field, what is wrong and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.policy import PolicyError, hash_key, load

SECRET = "mtok-acme-ci-" + "s3cr3tS3CR3T" * 4
SHA = "abcdef7890123456789012345678901234567890123456789012345678901234"
OK_MODEL = '{replicas: [{url: "http://a:1"}]}'


OWN_POOL = "{name: a, replicas: [{url: http://a}]}"
HOSTED = "{name: h, engine: openai, replicas: [{url: https://h/v1}]"


def problems(tmp_path: Path, *texts: str) -> list[str]:
    """What is wrong, as `file:line: path: message` with the file's name alone."""
    for index, text in enumerate(texts):
        (tmp_path / f"{index}.yaml").write_text(text)
    with pytest.raises(PolicyError) as refused:
        load(tmp_path)
    assert SECRET not in str(refused.value)
    return [str(problem).replace(f"{tmp_path}/", "") for problem in refused.value.problems]


def in_model(field: str) -> str:
    return 'models:\n  m:\n    replicas: [{url: "http://a:1"}]\n    ' + field


def in_replica(replica: str) -> str:
    return f"models:\n  m:\n    replicas: [{replica}]\n"


def in_tenant(field: str) -> str:
    return f"models: {{m: {OK_MODEL}}}\ntenants:\n  acme:\n    {field}"


def in_limits(field: str) -> str:
    return in_tenant(f"limits: {{{field}}}")


def in_class(field: str) -> str:
    return f"models: {{m: {OK_MODEL}}}\nclasses:\n  c: {{{field}}}"


NUMBERS = [
    (in_class('max_wait_s: "2s"'), "classes.c.max_wait_s: is in seconds, a plain number: write 2, not '2s'"),
    (in_class("max_wait_s: 2000ms"), "classes.c.max_wait_s: is in seconds, a plain number: write 2, not '2000ms'"),
    (in_class("max_wait_s: 2 min"), "classes.c.max_wait_s: is in seconds, a plain number: write 120, not '2 min'"),
    (
        in_class("max_wait_s: 2000"),
        "classes.c.max_wait_s: must be at most 600 seconds, not 2000; if milliseconds were meant write 2",
    ),
    (in_class("max_wait_s: 0"), "classes.c.max_wait_s: must be more than 0 seconds, not 0"),
    (in_class("max_wait_s: soon"), "classes.c.max_wait_s: is in seconds, a plain number, not 'soon'"),
    (in_class('weight: "1"'), "classes.c.weight: is a plain number: write 1 without quotes"),
    (in_class("weight: -1"), "classes.c.weight: must be more than 0, not -1"),
    (in_class("weight: .inf"), "classes.c.weight: is a plain number, not '.inf'"),
    (in_class("priority: 1.5"), "classes.c.priority: is a whole number, not 1.5"),
    (in_class("priority: 010"), "classes.c.priority: is a whole number: write 10, not '010'"),
    (in_class("priority: true"), "classes.c.priority: is a whole number, not 'true'"),
    (
        in_class('slo: {ttft_p99_ms: "0.6s"}'),
        "classes.c.slo.ttft_p99_ms: is in milliseconds, a whole number: write 600, not '0.6s'",
    ),
    (
        in_class("slo: {itl_p99_ms: 0.08}"),
        "classes.c.slo.itl_p99_ms: is in milliseconds, a whole number, not 0.08; for 0.08 s write 80",
    ),
    (
        in_limits('budget_usd: "$50"'),
        "tenants.acme.limits.budget_usd: is in US dollars, a plain number: write 50, not '$50'",
    ),
    (
        in_limits("budget_usd: 0"),
        "tenants.acme.limits.budget_usd: must be more than 0 US dollars (leave it out for no budget), not 0",
    ),
    (
        in_limits("budget_usd: 10000000"),
        "tenants.acme.limits.budget_usd: must be at most 9000000 US dollars, not 10000000",
    ),
    (
        in_limits("requests_per_minute: 10/s"),
        "tenants.acme.limits.requests_per_minute: is in requests per minute, a whole number: write 600, not '10/s'",
    ),
    (
        in_limits('tokens_per_minute: "200,000"'),
        "tenants.acme.limits.tokens_per_minute: is in tokens per minute, a whole number: write 200000, not '200,000'",
    ),
    (
        in_limits("tokens_per_minute: 200k"),
        "tenants.acme.limits.tokens_per_minute: is in tokens per minute, a whole number: write 200000, not '200k'",
    ),
    (
        in_limits("concurrent_requests: 0"),
        "tenants.acme.limits.concurrent_requests: must be at least 1 requests (leave it out for no limit), not 0",
    ),
    (
        in_limits("max_input_tokens: -3"),
        "tenants.acme.limits.max_input_tokens: must be at least 1 tokens (leave it out for no limit), not -3",
    ),
    (
        in_limits("max_output_tokens: 99999999999999"),
        "tenants.acme.limits.max_output_tokens: must be at most 1000000000000 tokens, not 99999999999999",
    ),
    (
        in_limits("max_output_tokens:"),
        "tenants.acme.limits.max_output_tokens: is empty; give it a value or leave it out",
    ),
    (
        in_limits("max_output_tokens: [1]"),
        "tenants.acme.limits.max_output_tokens: is a single value, not a list",
    ),
    (
        in_model("context_tokens: 4k"),
        "models.m.context_tokens: is in tokens, a whole number: write 4096 (or 4000), not '4k'",
    ),
    (
        in_model('context_tokens: "4096"'),
        "models.m.context_tokens: is in tokens, a whole number: write 4096 without quotes",
    ),
    (
        in_model("price: {output_usd_per_mtok: $0.35/Mtok}"),
        "models.m.price.output_usd_per_mtok: is in US dollars per million tokens, a plain number: write 0.35, "
        "not '$0.35/Mtok'",
    ),
    (
        in_model('price: {output_usd_per_mtok: "0,35"}'),
        "models.m.price.output_usd_per_mtok: is in US dollars per million tokens, a plain number: write 0.35, "
        "not '0,35'",
    ),
    (
        in_model("price: {output_usd_per_mtok: 1, input_ratio: 28 %}"),
        "models.m.price.input_ratio: is a share of the output price, 0 to 1, a plain number: write 0.28, not '28 %'",
    ),
    (
        in_model("price: {output_usd_per_mtok: 1, input_ratio: 28}"),
        "models.m.price.input_ratio: must be at most 1, not 28; for 28 % write 0.28",
    ),
    (
        in_model("price: {output_usd_per_mtok: 1, input_ratio: -0.1}"),
        "models.m.price.input_ratio: must be at least 0, not -0.1",
    ),
    (
        in_model("price: {output_usd_per_mtok: 1, cached_ratio: 0.5}"),
        "models.m.price.cached_ratio: cached input would cost more than uncached: both ratios are of the output "
        "price; for 0.5 of the input price write 0.14",
    ),
]

FIELDS = [
    (
        in_limits("requests_per_min: 600"),
        "tenants.acme.limits.requests_per_min: unknown field 'requests_per_min'; did you mean 'requests_per_minute'?",
    ),
    (in_limits("rpm: 600"), "tenants.acme.limits.rpm: unknown field 'rpm'; did you mean 'requests_per_minute'?"),
    (
        in_class("max_wait_ms: 200"),
        "classes.c.max_wait_ms: unknown field 'max_wait_ms'; did you mean 'max_wait_s'? It is in seconds.",
    ),
    (
        in_tenant("color: red"),
        "tenants.acme.color: unknown field 'color'; a tenant has keys, models, class, group, limits, ",
    ),
    (in_tenant("Models: [m]"), "tenants.acme.Models: unknown field 'Models'; did you mean 'models'?"),
    (in_tenant("limits:"), "tenants.acme.limits: is empty; it holds limits: write {requests_per_minute: 600, "),
    (in_tenant("models: m"), 'tenants.acme.models: is a list: write ["*"]'),
    (in_tenant("models: []"), 'tenants.acme.models: needs at least 1: write ["*"]'),
    (in_tenant("class: {priority: 1}"), "tenants.acme.class: is a class's name, not a mapping"),
    (
        in_limits("budget_period: weekly"),
        "tenants.acme.limits.budget_period: 'weekly' is not one of them; write one of: hour, day, month",
    ),
    (
        in_limits("budget_period: Month"),
        "tenants.acme.limits.budget_period: 'Month' is not one of them; did you mean 'month'? write one of: ",
    ),
    (
        in_model("engine: tgi\n    engine_priority: pass"),
        "models.m.engine_priority: tgi knows no priorities; leave it out",
    ),
    (
        in_model("engine: llamacpp\n    cache_isolation: tenant"),
        "models.m.cache_isolation: llamacpp cannot keep tenants' cached prompts apart; leave it out",
    ),
    (
        in_model("api_key_env: sk-0123456789"),
        "models.m.api_key_env: is the name of an environment variable, such as TOGETHER_API_KEY; the key itself stays",
    ),
    (
        in_model("engine: vlllm"),
        "models.m.engine: 'vlllm' is not one of them; did you mean 'vllm'? write one of: vllm, sglang, ",
    ),
    (in_model("gpu: {count: 2}"), "models.m.gpu: needs either sku (its price is in the catalogue) or usd_per_hour"),
    (
        in_model("gpu: {sku: H100, usd_per_hour: 3}"),
        "models.m.gpu.usd_per_hour: both sku and usd_per_hour say what the GPU costs; keep one",
    ),
    (
        in_model("gpu: {sku: h100}"),
        "models.m.gpu.sku: 'h100' is not in the GPU catalogue; did you mean 'H100'? known: A100-40GB, A100, H100, "
        "H100-PCIe, H200, L4, L40S, B100, B200, MI300X; for any other GPU write usd_per_hour",
    ),
    (in_model("gpu: H100"), "models.m.gpu: is not a mapping; it holds a GPU: write {sku: H100, count: 1}"),
    (in_model("price: {input_ratio: 0.3}"), "models.m.price: output_usd_per_mtok is missing."),
    ("models: {m: {engine: vllm}}", "models.m: replicas is missing."),
    ("models: {m: {replicas: []}}", 'models.m.replicas: needs at least 1: write [{url: "http://127.0.0.1:9001"}]'),
    ("models: [m]", "models: is not a mapping; it holds names and what they are: write tiny: {replicas: [..]}"),
    ("- models", "is not a mapping; it holds a policy document: write models, tenants and classes"),
    ("modles: {}", "modles: unknown field 'modles'; did you mean 'models'?"),
    (
        f'models: {{"a b": {OK_MODEL}}}',
        "models.'a b': 'a b' is a model's name: letters, digits and . _ : / @ + - (at most 128), ",
    ),
    (in_tenant("class: c").replace("acme", "'{acme}'"), "tenants.'{acme}': '{acme}' is a name: letters, digits and "),
    ("models: {? {a: 1} : 2}", "models: a name is missing before ':'"),
]

FIELDS += [
    (
        in_tenant("time_zone: Berlin"),
        "tenants.acme.time_zone: 'Berlin' is no time zone: write an IANA name, such as Europe/Berlin or UTC",
    ),
    (in_tenant("time_zone: ../UTC"), "tenants.acme.time_zone: '../UTC' is no time zone"),
    (in_tenant("time_zone: Europe"), "tenants.acme.time_zone: 'Europe' is no time zone"),
    (in_tenant("tz: UTC"), "tenants.acme.tz: unknown field 'tz'; did you mean 'time_zone'?"),
    ("alerts: {}", "alerts: url is missing. Where each alert is posted to as JSON, the whole address."),
    ("alerts: {webhook: https://a}", "alerts.webhook: unknown field 'webhook'; did you mean 'url'?"),
    ("alerts: {url: hooks.example.com/T0/B1}", "alerts.url: must begin with http:// or https://: write http://hooks."),
    ("alerts: {url: 'https://u:p@a/b'}", "alerts.url: must not hold a user or password"),
    ("webhook: {url: https://a}", "webhook: unknown field 'webhook'; did you mean 'alerts'?"),
    ("ledger: {tags: {header: x-tags}}", "ledger.tags: names is missing."),
    ("ledger: {tags: {names: [a, b, a]}}", "ledger.tags.names: a is in the list twice"),
    ("ledger: {tags: {names: [a,b,c,d,e,f,g,h,i]}}", "ledger.tags.names: has 9 tags; at most 8"),
    ("ledger: {tags: {names: [a], header: Cookie}}", "ledger.tags.header: 'Cookie' has a meaning of its own"),
    ("ledger: {tags: {names: [a], header: 'a: b'}}", "ledger.tags.header: 'a: b' is a header's name"),
]

FIELDS += [
    ("models: {m: {pools: []}}", "models.m.pools: needs at least 1: write [{name: reserved, replicas: [..]}"),
    (
        "models: {m: {pools: [{name: a, replicas: [{url: http://a}]}, {name: a, replicas: [{url: http://b}]}]}}",
        "models.m.pools: a is in the list twice",
    ),
    (
        "models: {m: {pools: [{name: a, replicas: [{url: http://a}]}, {name: b, replicas: [{url: http://a}]}]}}",
        "models.m.pools[1].replicas[0].url: http://a is in the list twice",
    ),
    (
        "models: {m: {discover: {}}}",
        "models.m.discover.file: is one way of several; give one of file, dns, srv and kubernetes",
    ),
    (
        "models: {m: {discover: {file: x, srv: y}}}",
        "models.m.discover.srv: is one way of several; give one of file, dns, srv and kubernetes",
    ),
    (
        "models: {m: {discover: {dns: vllm.models.svc}}}",
        "models.m.discover.port: is missing: a name's addresses say nothing of ports; add the engines' own",
    ),
    (
        "models: {m: {discover: {srv: _http._tcp.vllm, port: 80}}}",
        "models.m.discover.port: goes with dns alone: the others tell ports themselves; for kubernetes write it there",
    ),
    (
        "models: {m: {discover: {dns: 'http://vllm', port: 80}}}",
        "models.m.discover.dns: 'http://vllm' must be a name in DNS: letters, digits, _ and -, with dots between, no",
    ),
    (
        "models: {m: {discover: {file: x}, pools: [{name: a, replicas: [{url: http://a}]}]}}",
        "models.m.discover: tells replicas that are in no pool; leave out the pools, or name their replicas there",
    ),
    (
        in_model("pools: [{name: a, replicas: [{url: http://a}]}]"),
        "models.m.replicas: stand in pools already; keep one of the two",
    ),
    (
        "models: {m: {pools: [{name: h, engine: openai, replicas: [{url: https://h/v1}]}]}}",
        "models.m.pools: are all last resorts; give the model itself the engine, the key and the price",
    ),
    (
        f"models: {{m: {{pools: [{HOSTED}}}, {{name: a, replicas: [{{url: http://a}}]}}]}}}}",
        "models.m.pools: with an engine, a key or a price of their own are last resorts: put them last",
    ),
    (
        f"models: {{m: {{pools: [{OWN_POOL}, {HOSTED}, price: {{output_usd_per_mtok: 1}}}}]}}}}",
        "models.m.pools[1].price: is not charged while the model itself has none; give it one",
    ),
    (
        f"models: {{m: {{price: {{output_usd_per_mtok: 1}}, pools: [{OWN_POOL}, {HOSTED}, "
        "price: {output_usd_per_mtok: 1, mode: live}}]}}",
        "models.m.pools[1].price: is what another provider asks; write mode: fixed",
    ),
    (
        f"models: {{m: {{cache_isolation: tenant, pools: [{OWN_POOL}, {HOSTED}}}]}}}}",
        "models.m.pools[1].engine: openai cannot keep tenants' cached prompts apart, as this model promises",
    ),
    (in_model("routing: {strategy: sticky}"), "models.m.routing.strategy: 'sticky' is not one of them; write one of"),
    (in_model("routing: {shadow: prefix}"), "models.m.routing.shadow: is the strategy that is used already; name"),
    (in_model("routing: {session_header: x-chat}"), "models.m.routing.session_header: says nothing here: only the"),
    (
        in_model("routing: {strategy: session, session_header: Cookie}"),
        "models.m.routing.session_header: 'Cookie' has a meaning of its own",
    ),
    (
        in_model("cache_isolation: key"),
        "models.m.cache_isolation: 'key' is not one of them; write one of: shared, tena",
    ),
]

REPLICAS = [
    ("{url: http://a:1, role: prefill}", "models.m.replicas[0].role: prefill and decode apart are not routed here: "),
    ("{url: http://a:1, data_parallel_start_rank: 4}", "models.m.replicas[0].data_parallel_start_rank: says nothing w"),
    ("{url: http://a:1, weight: 5}", "models.m.replicas: have weights, which only routing.strategy: weighted looks at"),
    ("{url: http://a:1, weight: -1}", "models.m.replicas[0].weight: must be at least 0, not -1"),
    ("{}", "models.m.replicas[0]: url is missing. Address of the engine, http://HOST:PORT, without a path."),
    ("{url: }", "models.m.replicas[0].url: is empty; give it a value or leave it out"),
    ("http://a:1", 'models.m.replicas[0]: is not a mapping; it holds a replica: write {url: "http://127.0.0.1:9001"}'),
    ("{base_url: http://a:1}", "models.m.replicas[0].base_url: unknown field 'base_url'; did you mean 'url'?"),
    (
        "{url: localhost:9002}",
        "models.m.replicas[0].url: 'localhost:9002' must begin with http:// or https://: write http://localhost:9002",
    ),
    ("{url: ftp://a}", "models.m.replicas[0].url: 'ftp://a' must begin with http:// or https://, not ftp://"),
    (
        "{url: http://a:1/v1}",
        "models.m.replicas[0].url: 'http://a:1/v1' is only the replica's address, the gateway adds /v1/… itself: "
        "write http://a:1",
    ),
    ("{url: http://a:99999}", "models.m.replicas[0].url: 'http://a:99999' is no address: write http://HOST:PORT with"),
    ("{url: http://}", "models.m.replicas[0].url: 'http://' is no address: write http://HOST:PORT"),
    ("{url: http://u:p@a}", "models.m.replicas[0].url: 'http://u:p@a' must not hold a user or password"),
    ("{url: http://a:1}, {url: http://a:1/}", "models.m.replicas[1].url: http://a:1 is in the list twice"),
]


@pytest.mark.parametrize(("text", "told"), NUMBERS)
def test_a_number_in_another_unit_or_out_of_bounds_is_told_what_to_write(tmp_path: Path, text: str, told: str) -> None:
    """Quotes, units, commas, percentages, zeros and fractions: one problem, in the line of the field."""
    (problem,) = problems(tmp_path, text)
    assert problem.split(": ", 1)[1] == told
    assert problem.startswith(f"0.yaml:{text.rstrip().count(chr(10)) + 1}: ")


@pytest.mark.parametrize(("text", "told"), FIELDS)
def test_a_field_that_is_misspelt_missing_or_of_another_kind_is_told(tmp_path: Path, text: str, told: str) -> None:
    """Unknown names with the nearest known one, missing ones with what they are, wrong kinds with an example."""
    assert any(problem.split(": ", 1)[1].startswith(told) for problem in problems(tmp_path, text))


@pytest.mark.parametrize(("replica", "told"), REPLICAS)
def test_a_replica_is_an_address_and_nothing_else(tmp_path: Path, replica: str, told: str) -> None:
    """Without a URL, with a path, a user, another scheme or no host it is refused, with the URL to write."""
    assert problems(tmp_path, in_replica(replica))[-1].split(": ", 1)[1].startswith(told)


def test_all_problems_are_told_at_once_in_the_order_of_the_files(tmp_path: Path) -> None:
    """Two files with four faults: four lines, by file and line."""
    told = problems(
        tmp_path,
        "models:\n  m:\n    engine: tgif\n    replicas: [{}]\n",
        "tenants:\n  acme:\n    class: slow\n    limits: {tokens_per_minute: 1k}\n",
    )
    assert [line.split(": ")[:2] for line in told] == [
        ["0.yaml:3", "models.m.engine"],
        ["0.yaml:4", "models.m.replicas[0]"],
        ["1.yaml:3", "tenants.acme.class"],
        ["1.yaml:4", "tenants.acme.limits.tokens_per_minute"],
    ]


def test_a_name_defined_twice_is_told_with_the_other_place(tmp_path: Path) -> None:
    """Models, tenants and classes are defined once over all files."""
    text = f"models: {{m: {OK_MODEL}}}\ntenants: {{t: {{}}}}\nclasses: {{c: {{}}}}\n"
    assert problems(tmp_path, text, text) == [
        "1.yaml:1: models.m: is defined already in 0.yaml:1; each name is defined once",
        "1.yaml:2: tenants.t: is defined already in 0.yaml:2; each name is defined once",
        "1.yaml:3: classes.c: is defined already in 0.yaml:3; each name is defined once",
    ]


def test_a_yaml_key_written_twice_is_told(tmp_path: Path) -> None:
    """YAML itself would silently keep the last."""
    text = f"models:\n  m: {OK_MODEL}\n  m: {OK_MODEL}\n"
    assert problems(tmp_path, text) == [
        "0.yaml:3: models.m: is there twice, first in line 2; YAML would keep only the last"
    ]


def test_an_alias_that_is_another_models_name_is_told(tmp_path: Path) -> None:
    """Aliases share one space with names and with each other."""
    text = (
        'models:\n  a: {replicas: [{url: "http://a:1"}], aliases: [b, x]}\n'
        '  b: {replicas: [{url: "http://a:1"}], aliases: [x]}\n'
    )
    assert problems(tmp_path, text) == [
        "0.yaml:2: models.a.aliases[0]: 'b' is already the name of a model, in 0.yaml:3",
        "0.yaml:3: models.b.aliases[0]: 'x' is already the name of a model, in 0.yaml:2",
    ]


def test_two_tenants_with_one_key_are_told(tmp_path: Path) -> None:
    """The same hash, in whatever case, is one key; one id is one key too."""
    text = (
        f"models: {{m: {OK_MODEL}}}\ntenants:\n"
        f"  a: {{keys: [{{id: one, sha256: {SHA}}}]}}\n"
        f"  b: {{keys: [{{id: two, sha256: {SHA.upper()}}}]}}\n"
        f"  c: {{keys: [{{id: one, sha256: {SHA[::-1]}}}]}}\n"
    )
    assert problems(tmp_path, text) == [
        "0.yaml:4: tenants.b.keys[0].sha256: is the key of tenant 'a' already, in 0.yaml:3; make another key",
        "0.yaml:5: tenants.c.keys[0].id: 'one' is taken, in 0.yaml:3; ids are used once",
    ]


@pytest.mark.parametrize(
    ("keys", "path", "meant"),
    [
        (f"[{{id: a, sha256: {SECRET}}}]", "tenants.acme.keys[0].sha256", hash_key(SECRET)),
        (f"[{{id: a, key: {SECRET}}}]", "tenants.acme.keys[0].key", f"sha256: {hash_key(SECRET)}"),
        (f"[{SECRET}]", "tenants.acme.keys[0]", f"sha256: {hash_key(SECRET)}"),
        (f"[{{id: {SECRET}, sha256: {SHA}}}]", "tenants.acme.keys[0].id", f"sha256: {hash_key(SECRET)}"),
    ],
)
def test_a_whole_key_in_a_document_is_told_without_repeating_it(
    tmp_path: Path, keys: str, path: str, meant: str
) -> None:
    """Wherever the secret was written, the message says so, gives the hash to write, and never shows the secret."""
    told = problems(tmp_path, in_tenant(f"keys: {keys}"))
    assert any(f" {path}: " in line and "holds a whole key" in line and f"write {meant};" in line for line in told)


@pytest.mark.parametrize(
    "text",
    [
        in_tenant(f"{SECRET}: 1"),
        in_tenant(f"models: [{SECRET}]"),
        in_tenant(f"class: {SECRET}"),
        in_tenant(f"class: x {SECRET} y"),
        in_limits(f"tokens_per_minute: {SECRET}"),
        in_model(f"engine: {SECRET}"),
        in_replica(f"{{url: '{SECRET}'}}"),
        in_replica(f"{{url: 'http://a/{SECRET}'}}"),
        f"models: {{m: {OK_MODEL}}}\ntenants: {{{SECRET}: {{}}}}",
        f"models: {{m: {OK_MODEL}}}\ntenants: [*{SECRET}]",
        f"models: {{m: !{SECRET} }}",
    ],
)
def test_a_secret_is_never_repeated_wherever_it_was_written(tmp_path: Path, text: str) -> None:
    """Names, values, URLs, anchors: nothing shaped like a key comes back in a message."""
    assert problems(tmp_path, text)  # which also asserts that the secret is in none


@pytest.mark.parametrize("digest", [SHA[:-1], SHA + "0", "g" * 64, "''"])
def test_a_hash_that_is_none_is_told(tmp_path: Path, digest: str) -> None:
    """It is 64 hex digits; the value itself is not repeated, it may be a secret of another kind."""
    (told,) = problems(tmp_path, in_tenant(f"keys: [{{id: a, sha256: {digest}}}]"))
    assert "tenants.acme.keys[0].sha256: is the SHA-256 of the whole key: 64 hex digits, not " in told
    assert digest not in told


def test_names_that_lead_nowhere_are_told_with_what_was_meant(tmp_path: Path) -> None:
    """Tenants name models and classes that exist; with the nearest one, or all there are."""
    text = (
        f"models: {{tiny: {OK_MODEL}}}\nclasses: {{interactive: {{}}}}\n"
        "tenants:\n  a: {models: [tinny], class: interactve}\n  b: {models: [llama]}\n"
    )
    assert problems(tmp_path, text) == [
        "0.yaml:4: tenants.a.class: there is no class 'interactve'; did you mean 'interactive'?",
        "0.yaml:4: tenants.a.models[0]: there is no model 'tinny'; did you mean 'tiny'?",
        "0.yaml:5: tenants.b.models[0]: there is no model 'llama'; there is tiny",
    ]


def test_a_budget_needs_prices(tmp_path: Path) -> None:
    """A budget is refused where a model without a price could be used, and held where the tenant may not use it."""
    priced = '{replicas: [{url: "http://a:1"}], price: {output_usd_per_mtok: 1}}'
    text = (
        f"models: {{free: {OK_MODEL}, paid: {priced}}}\n"
        "tenants:\n  a: {limits: {budget_usd: 5}}\n  b: {models: [paid], limits: {budget_usd: 5}}\n"
    )
    assert problems(tmp_path, text) == [
        "0.yaml:3: tenants.a.limits.budget_usd: this budget cannot be held: no price is set for free, which this "
        "tenant may use; give each a price, or name the tenant's models"
    ]


def test_one_fault_is_not_told_as_two(tmp_path: Path) -> None:
    """A model that could not be read still exists for its tenants, a price that could not be read is still one."""
    text = (
        'models:\n  m: {replicas: [{url: "http://a:1"}], engine: tgif, price: {output_usd_per_mtok: x}}\n'
        "tenants: {a: {models: [m], limits: {budget_usd: 5}}}\n"
    )
    assert [line.split(": ")[1] for line in problems(tmp_path, text)] == [
        "models.m.engine",
        "models.m.price.output_usd_per_mtok",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models:\n\ttiny: 1\n", "0.yaml:2: is not YAML: a tab indents this line; use spaces"),
        (
            "models: {a: [}\n",
            "0.yaml:1: is not YAML: while parsing a flow node, expected the node content, but found '}'",
        ),
        ("a: 1\n---\nb: 2\n", "0.yaml:2: is not YAML: expected a single document in the stream"),
        ("models: *nope\n", "0.yaml:1: is not YAML: found undefined alias 'nope'"),
        ("[" * 5000, "0.yaml:1: is nested too deeply to be a policy"),
        ("a: \0", "0.yaml:1: is not YAML: "),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    """Syntax errors have a line and a reason, as all others."""
    assert problems(tmp_path, text)[0].startswith(told)


@pytest.mark.parametrize(
    "text", ["models: &m {tiny: *m}\n", "models: &m {tiny: {<<: *m}}\n", "&a {<<: *a, models: {}}\n"]
)
def test_a_document_that_holds_itself_is_told(tmp_path: Path, text: str) -> None:
    """Anchors can make YAML endless; reading it is not."""
    assert problems(tmp_path, text)


def test_what_is_no_text_is_told_with_its_line(tmp_path: Path) -> None:
    """A file in another encoding is refused at its first bad byte."""
    (tmp_path / "a.yaml").write_bytes(b"models:\n  # caf\xe9\n")
    with pytest.raises(PolicyError, match=r"a\.yaml:2: is not UTF-8 text"):
        load(tmp_path)


def test_directories_without_documents_are_told(tmp_path: Path) -> None:
    """Missing, a file, empty, nearly named, or without a model: each says what to do."""

    def told(path: Path) -> str:
        with pytest.raises(PolicyError) as refused:
            load(path)
        return str(refused.value)

    assert told(tmp_path / "nope") == f"{tmp_path}/nope: there is no such directory"
    assert told(tmp_path) == f"{tmp_path}: holds no *.yaml file; policies/example.yaml of the project is a start"
    (tmp_path / "a.yml").write_text("")
    assert told(tmp_path) == f"{tmp_path}/a.yml: would not be read: only *.yaml is; rename it to a.yaml"
    assert told(tmp_path / "a.yml") == f"{tmp_path}/a.yml: is a file; name the directory it is in: {tmp_path}"
    (tmp_path / "a.yml").rename(tmp_path / "a.yaml")
    assert told(tmp_path) == f"{tmp_path}: models: no model is defined; name one with its replicas"


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A dangling link, as a half-mounted volume leaves it, is a problem and no traceback."""
    (tmp_path / "a.yaml").symlink_to(tmp_path / "gone")
    with pytest.raises(PolicyError, match=r"a\.yaml: cannot be read: No such file or directory"):
        load(tmp_path)
