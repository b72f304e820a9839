import assert from 'node:assert/strict'
import { test } from 'node:test'
import OpenAI from 'openai'
import { zodTextFormat } from 'openai/helpers/zod'
import { ResponsesWS } from 'openai/resources/responses/ws'
import { z } from 'zod'
import { ADA, ANSWER, TASK, baseURL, getWeather, mcpURL, model } from './task.mjs'

const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 })
const tools = [
  {
    type: 'function', name: 'get_weather', description: 'The weather in a city', strict: true,
    parameters: {
      type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false,
    },
  },
  { type: 'mcp', server_label: 'units', server_url: mcpURL, require_approval: 'never' },
]

const whole = (request) => client.responses.create(request)
const streamed = (request) => client.responses.stream(request).finalResponse()

async function overAWebSocket(request) {
  const socket = new ResponsesWS(client)
  socket.send({ type: 'response.create', ...request })
  try {
    for await (const { type, message } of socket.stream()) {
      if (type === 'message' && message.type === 'response.completed') return message.response
    }
  } finally {
    socket.close()
  }
}

for (const ask of [whole, streamed, overAWebSocket]) {
  test(`${ask.name}, two tools`, async () => {
    const first = await ask({ model, tools, input: TASK })
    const call = first.output.at(-1)
    const output = getWeather(JSON.parse(call.arguments))
    const second = await ask({
      model, tools, previous_response_id: first.id,
      input: [{ type: 'function_call_output', call_id: call.call_id, output }],
    })
    assert.deepEqual(second.output.map(({ type }) => type), ['mcp_call', 'reasoning', 'message'])
    assert.equal(second.output.at(-1).content[0].text, ANSWER)
  })
}

test('a parsed answer', async () => {
  const format = zodTextFormat(z.object({ name: z.string(), age: z.number() }), 'person')
  const response = await client.responses.parse({ model, input: 'Ada as JSON', text: { format } })
  assert.deepEqual(response.output_parsed, ADA)
})
