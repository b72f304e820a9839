// Worker: llama.cpp as node-llama-cpp ships it, greedy, through its public API; the protocol is bench/worker.py's.
//
// node bench/peers/node_llama_cpp.mjs PACKAGE MODEL THREADS, where PACKAGE is a folder with node_modules.
import {createInterface} from "node:readline";
import {readFile} from "node:fs/promises";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [folder, modelPath, threads] = process.argv.slice(2);
const installed = path.resolve(folder, "node_modules", "node-llama-cpp");
const {version} = JSON.parse(await readFile(path.join(installed, "package.json"), "utf8"));
const {getLlama} = await import(pathToFileURL(path.join(installed, "dist", "index.js")));

const llama = await getLlama({gpu: false, build: "never", maxThreads: Number(threads), logLevel: "error"});
const model = await llama.loadModel({modelPath, gpuLayers: 0});
const contexts = new Map();

/** A context with room for so many sequences; each is used again after it has been cleared. */
async function sequencesFor(count, length) {
    const key = `${count} ${length}`;
    if (!contexts.has(key)) {
        const context = await model.createContext(
            {sequences: count, contextSize: Math.ceil(length / 256) * 256, batchSize: 2048, threads: Number(threads)}
        );
        contexts.set(key, Array.from({length: count}, () => context.getSequence()));
    }
    const sequences = contexts.get(key);
    await Promise.all(sequences.map((sequence) => sequence.clearHistory()));
    return sequences;
}

async function answer(sequence, prompt, count) {
    const tokens = [], times = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        times.push(performance.now());
        tokens.push(token);
        if (tokens.length === count) break;
    }
    return {tokens, times};
}

async function run({prompts, outputs, phase}) {
    const length = Math.max(...prompts.map((prompt, i) => prompt.length + outputs[i]));
    const sequences = await sequencesFor(prompts.length, length);
    const start = performance.now();
    const answers = await Promise.all(prompts.map((prompt, i) => answer(sequences[i], prompt, outputs[i])));
    const tokens = answers.map((found) => found.tokens);
    const begin = Math.max(...answers.map(({times}) => times[0]));
    if (phase === "prefill")
        return [prompts.reduce((sum, prompt) => sum + prompt.length, 0), (begin - start) / 1e3, tokens];
    const later = answers.flatMap(({times}) => times).filter((moment) => moment > begin);
    return [later.length, (Math.max(...later) - begin) / 1e3, tokens];
}

const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");
say({versions: {"node-llama-cpp": version, "llama.cpp": llama.llamaCppRelease.release, node: process.version}});
for await (const line of createInterface({input: process.stdin})) say(await run(JSON.parse(line)));
process.exit(0);
