// Runs the simulator of an npm package some times, and prints what it did and how long it took as one line of JSON.
//   node inference_lab.mjs FOLDER_OF_THE_PACKAGE CONFIG_JSON ROUNDS
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const [folder, config, rounds] = process.argv.slice(2);
const { initSync, run_simulation } = await import(pathToFileURL(join(folder, "inference_lab.js")));
initSync({ module: readFileSync(join(folder, "inference_lab_bg.wasm")) });

const seconds = [];
let result;
for (let round = 0; round < Number(rounds); round++) {
  const before = process.cpuUsage();
  result = run_simulation(config);
  const used = process.cpuUsage(before);
  seconds.push((used.user + used.system) / 1e6);
}
const tokens = result.distributions.output_lengths.reduce((sum, length) => sum + length, 0);
const { completed_requests: requests, total_time: simulated } = result.metrics;
console.log(JSON.stringify({ seconds, tokens, requests, simulated, rss: process.memoryUsage().rss }));
