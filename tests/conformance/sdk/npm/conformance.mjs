// OpenAI's npm package against the gateway. Each check prints its name; the first that fails ends the run with status 1.
// Environment: BASE_URL, OPEN_KEY (no limits), HURRIED_KEY (one request a minute, spent), BROKE_KEY (no money).
import assert from "node:assert/strict";
import OpenAI from "openai";

const { BASE_URL, OPEN_KEY, HURRIED_KEY, BROKE_KEY } = process.env;
const connect = (apiKey, options = {}) => new OpenAI({ baseURL: BASE_URL, apiKey, maxRetries: 0, ...options });
const client = connect(OPEN_KEY);
const model = "tiny";
const messages = [{ role: "user", content: "Hello" }];

const collect = async (stream) => {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
};

const refused = async (call, kind, status, code) => {
  const error = await call().then(() => assert.fail("was not refused"), (reason) => reason);
  assert.ok(error instanceof kind, `${error}`);
  assert.equal(error.status, status);
  assert.equal(error.code, code);
  assert.ok(error.requestID);
  return error;
};

const checks = {
  "chat, with the request's id": async () => {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 5 });
    assert.equal(answer.usage.completion_tokens, 5);
    assert.ok(answer._request_id);
  },
  "stream without usage": async () => {
    const chunks = await collect(await client.chat.completions.create({ model, messages, max_tokens: 5, stream: true }));
    assert.ok(chunks.every((chunk) => chunk.choices.length === 1 && !("usage" in chunk)));
    assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
  },
  "stream with usage": async () => {
    const chunks = await collect(
      await client.chat.completions.create({
        model, messages, max_tokens: 5, stream: true, stream_options: { include_usage: true },
      }),
    );
    assert.equal(chunks.at(-1).usage.completion_tokens, 5);
    assert.deepEqual(chunks.at(-1).choices, []);
  },
  "stream helper": async () => {
    const stream = client.chat.completions.stream({ model, messages });
    assert.equal(await stream.finalContent(), (await stream.finalMessage()).content);
  },
  "raw response": async () => {
    const { data, response } = await client.chat.completions.create({ model, messages, max_tokens: 2 }).withResponse();
    assert.equal(response.headers.get("x-request-id"), data._request_id);
  },
  "abandoned stream": async () => {
    const stream = await client.chat.completions.create({ model, messages, max_tokens: 2000, stream: true });
    for await (const chunk of stream) {
      assert.equal(chunk.choices.length, 1);
      break;
    }
  },
  completions: async () => {
    const answer = await client.completions.create({ model, prompt: ["one", "two"], max_tokens: 3 });
    assert.equal(answer.usage.completion_tokens, 6);
  },
  responses: async () => {
    const answer = await client.responses.create({ model, input: "Hello", max_output_tokens: 6 });
    assert.equal(answer.usage.output_tokens, 6);
    const events = await collect(
      await client.responses.create({ model, input: "Hello", max_output_tokens: 6, stream: true }),
    );
    assert.equal(events.at(-1).response.usage.output_tokens, 6);
  },
  embeddings: async () => {
    const answer = await client.embeddings.create({ model, input: ["one", "two"] });
    assert.equal(answer.data.length, 2);
  },
  models: async () => {
    assert.deepEqual((await client.models.list()).data.map((card) => card.id).sort(), ["small", "tiny"]);
    assert.equal((await client.models.retrieve("small")).id, "small");
  },
  "401 is an AuthenticationError": async () => {
    const call = () => connect("mtok-nobody-xyz").chat.completions.create({ model, messages });
    await refused(call, OpenAI.AuthenticationError, 401, "invalid_api_key");
  },
  "404 is a NotFoundError": async () => {
    const call = () => client.chat.completions.create({ model: "no-such-model", messages });
    const error = await refused(call, OpenAI.NotFoundError, 404, "model_not_found");
    assert.equal(error.param, "model");
  },
  "400 is a BadRequestError": async () => {
    const call = () => client.chat.completions.create({ model, messages, max_tokens: 0 });
    const error = await refused(call, OpenAI.BadRequestError, 400, "invalid_request");
    assert.equal(error.param, "max_tokens");
  },
  "a rate limit is a RateLimitError": async () => {
    const call = () => connect(HURRIED_KEY).chat.completions.create({ model, messages, max_tokens: 1 });
    const error = await refused(call, OpenAI.RateLimitError, 429, "rate_limit_exceeded");
    assert.ok(Number(error.headers.get("retry-after-ms")) > 0);
  },
  "a spent budget is a RateLimitError that is not retried": async () => {
    let sent = 0;
    const counting = (...given) => (sent++, fetch(...given));
    const call = () =>
      connect(BROKE_KEY, { maxRetries: 5, fetch: counting }).chat.completions.create({ model, messages, max_tokens: 99 });
    await refused(call, OpenAI.RateLimitError, 429, "insufficient_quota");
    assert.equal(sent, 1);
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok      ${name}`);
  } catch (error) {
    console.log(`FAILED  ${name}\n${error.stack ?? error}`);
    process.exit(1);
  }
}
