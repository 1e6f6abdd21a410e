// Runs Perfetto's trace_processor (wasm) under Node; stdin and stdout carry TraceProcessorRpcStream messages.
//
//     node engine.mjs FOLDER        FOLDER holds engine_bundle.js and trace_processor.wasm
//
// The bundle is made for a web worker, so it is given the few globals of one that it touches.
import fs from 'node:fs';
import path from 'node:path';

const folder = process.argv[2];
const quiet = () => {};
console.log = console.info = console.warn = console.error = quiet; // stdout is the protocol's

const load = (url) => fs.readFileSync(path.join(folder, path.basename(String(url))));

class XMLHttpRequest {
  open(_method, url) {
    this.url = url;
  }
  send() {
    const bytes = load(this.url);
    this.status = 200;
    this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  }
}

const location = {href: 'http://localhost/', origin: 'http://localhost', protocol: 'http:', host: 'localhost'};
const worker = {location, addEventListener: quiet};
const globals = {
  self: worker,
  process: undefined, // or the bundle takes itself to be in Node and looks for other files
  location,
  WorkerGlobalScope: function () {},
  fetch: async (url) => new Response(load(url), {headers: {'content-type': 'application/wasm'}}),
  XMLHttpRequest,
};
new Function(...Object.keys(globals), load('engine_bundle.js').toString())(...Object.values(globals));

const {port1, port2} = new MessageChannel();
port2.onmessage = ({data}) => {
  if (data?.byteLength !== undefined) process.stdout.write(Buffer.from(data));
};
worker.onmessage({data: port1});
process.stdin.on('data', (bytes) => port2.postMessage(new Uint8Array(bytes)));
process.stdin.on('end', () => process.exit(0));
