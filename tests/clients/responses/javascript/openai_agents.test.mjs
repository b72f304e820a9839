import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import {
  Agent, MCPServerStreamableHttp, OpenAIResponsesModel, OpenAIResponsesWSModel, hostedMcpTool, run, setTracingDisabled,
  tool,
} from '@openai/agents'
import OpenAI from 'openai'
import { WebSocket } from 'ws'
import { z } from 'zod'
import { ADA, ANSWER, DENIED, TASK, baseURL, getWeather, mcpURL, model } from './task.mjs'

setTracingDisabled(true)
globalThis.WebSocket ??= WebSocket // node 20 has none of its own
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 })
const weather = tool({
  name: 'get_weather', description: 'The weather in a city', parameters: z.object({ city: z.string() }),
  execute: async (input) => getWeather(input),
})
const hosted = (requireApproval, onApproval) =>
  hostedMcpTool({ serverLabel: 'units', serverUrl: mcpURL, requireApproval, onApproval })

const server = new MCPServerStreamableHttp({ url: mcpURL, name: 'units' })
const socket = new OpenAIResponsesWSModel(client, model)
before(() => server.connect())
after(() => Promise.all([server.close(), socket.close()]))

const ways = [
  ['whole', new OpenAIResponsesModel(client, model), false],
  ['streamed', new OpenAIResponsesModel(client, model), true],
  ['over a WebSocket', socket, true],
]
for (const [name, model, stream] of ways) {
  const agent = (tools, settings = {}) => new Agent({ name: 'units', model, tools, ...settings })
  const finished = async (agent, input) => {
    const result = await run(agent, input, { stream })
    await result.completed
    return result
  }

  test(`${name}, a hosted server`, async () => {
    assert.equal((await finished(agent([weather, hosted('never')]), TASK)).finalOutput, ANSWER)
  })

  test(`${name}, a server of the client`, async () => {
    assert.equal((await finished(agent([weather], { mcpServers: [server] }), TASK)).finalOutput, ANSWER)
  })

  for (const [approve, answer] of [[true, ANSWER], [false, DENIED]]) {
    const always = { always: { toolNames: ['to_fahrenheit'] } }

    test(`${name}, approval ${approve}`, async () => {
      const deciding = agent([weather, hosted(always, async () => ({ approve }))])
      assert.equal((await finished(deciding, TASK)).finalOutput, answer)
    })

    test(`${name}, approval ${approve}, later`, async () => {
      const asking = agent([weather, hosted(always)])
      const { interruptions, state } = await finished(asking, TASK)
      assert.equal(interruptions.length, 1)
      approve ? state.approve(interruptions[0]) : state.reject(interruptions[0])
      assert.equal((await finished(asking, state)).finalOutput, answer)
    })
  }

  test(`${name}, an output type`, async () => {
    const outputType = z.object({ name: z.string(), age: z.number() })
    assert.deepEqual((await finished(agent([], { outputType }), 'Ada as JSON')).finalOutput, ADA)
  })
}
