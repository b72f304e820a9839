// The AI SDK: its zod schemas refuse what others overlook.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createOpenAI } from '@ai-sdk/openai'
import { Output, generateText, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'
import { ADA, ANSWER, DENIED, TASK, baseURL, getWeather, mcpURL, model } from './task.mjs'

const openai = createOpenAI({ baseURL, apiKey: 'none' })

const asked = (requireApproval, openaiOptions = {}) => ({
  model: openai.responses(model),
  maxRetries: 0,
  stopWhen: stepCountIs(8),
  providerOptions: { openai: openaiOptions },
  tools: {
    get_weather: tool({ inputSchema: z.object({ city: z.string() }), execute: async (input) => getWeather(input) }),
    units: openai.tools.mcp({ serverLabel: 'units', serverUrl: mcpURL, requireApproval }),
  },
})

async function streamed(options) {
  const errors = []
  const result = streamText({ ...options, onError: ({ error }) => errors.push(error) })
  await result.consumeStream()
  assert.deepEqual(errors, [])
  return { text: await result.text, content: await result.content, response: await result.response }
}

for (const [name, ask] of Object.entries({ generateText, streamed })) {
  for (const options of [{ store: true }, { store: false, include: ['reasoning.encrypted_content'] }]) {
    test(`${name}, two tools, store ${options.store}`, async () => {
      const result = await ask({ ...asked('never', options), prompt: TASK })
      assert.equal(result.text, ANSWER)
    })
  }

  for (const [approved, answer] of [[true, ANSWER], [false, DENIED]]) {
    test(`${name}, approval ${approved}`, async () => {
      const messages = [{ role: 'user', content: TASK }]
      const waiting = await ask({ ...asked('always'), messages })
      const [request] = waiting.content.filter((part) => part.type === 'tool-approval-request')
      const { approvalId } = request
      const approval = { type: 'tool-approval-response', approvalId, approved, providerExecuted: true }
      messages.push(...waiting.response.messages, { role: 'tool', content: [approval] })
      assert.equal((await ask({ ...asked('always'), messages })).text, answer)
    })
  }

  test(`${name}, previous response`, async () => {
    const messages = [{ role: 'user', content: 'hello' }]
    const first = await ask({ ...asked('never'), messages })
    const second = await ask({ ...asked('never', { previousResponseId: first.response.id }), prompt: TASK })
    assert.equal(second.text, ANSWER)
  })
}

test('an object', async () => {
  const schema = z.object({ name: z.string(), age: z.number() })
  const { output } = await generateText({ ...asked('never'), prompt: 'Ada as JSON', output: Output.object({ schema }) })
  assert.deepEqual(output, ADA)
})

test('an error', async () => {
  await assert.rejects(
    generateText({ ...asked('never'), prompt: TASK, model: openai.responses('nobody') }),
    ({ statusCode, data }) => statusCode === 404 && data.error.code === 'model_not_found',
  )
})
