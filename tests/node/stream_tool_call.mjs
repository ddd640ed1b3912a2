// One round trip with a tool through OpenAI's package: the call comes as a stream, its result goes back.
// In: the address of an OpenAI API and a model. Out: a JSON object of what the package made of the answers.
// Run it in a folder whose node_modules has the package.

import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(path.resolve("package.json"));
const { OpenAI } = await import(pathToFileURL(require.resolve("openai")));

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });

const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city.",
      parameters: {
        type: "object",
        properties: { city: { type: "string", examples: ["Köln"] } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];
const messages = [{ role: "user", content: "What is the weather in Köln?" }];

const events = [];
const stream = client.chat.completions.stream({ model, messages, tools, tool_choice: "required", temperature: 0 });
stream.on("tool_calls.function.arguments.delta", ({ name }) => events.push(name));
const called = await stream.finalChatCompletion();
const message = called.choices[0].message;

messages.push(message);
for (const call of message.tool_calls) {
  const { city } = JSON.parse(call.function.arguments);
  messages.push({ role: "tool", tool_call_id: call.id, content: `12 °C in ${city}` });
}
const answer = await client.chat.completions.create({ model, messages, tools, temperature: 0 });

console.log(
  JSON.stringify({
    content: message.content,
    calls: message.tool_calls.map((call) => ({ type: call.type, id: call.id, ...call.function })),
    finish_reason: called.choices[0].finish_reason,
    events,
    answer: answer.choices[0].message.content,
  }),
);
