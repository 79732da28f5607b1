// A jobgate worker in plain Node: counts the bytes and words of a text. It speaks frames on stdin
// and stdout, without an SDK.
//
// A frame: u32 length of all that follows, u8 version, u8 type, u16 flags, u32 id,
// u32 length of the meta, then the meta (JSON) and the body. Numbers are big-endian.
'use strict';
const [HELLO, COMMAND, REPLY, FAIL, PING, PONG, DRAIN] = [1, 3, 4, 5, 10, 11, 12];
console.log = console.error;  // nothing but frames may reach stdout; stderr is logged

function count(body) {  // may be async
  const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body);
  const words = text.split(/[ \t\n\v\f\r]+/).filter(Boolean).length;
  return { bytes: body.length, words };
}

function send(type, id, meta = null, body = Buffer.alloc(0)) {
  const said = Buffer.from(meta ? JSON.stringify(meta) : '');
  const head = Buffer.alloc(16);
  head.writeUInt32BE(12 + said.length + body.length, 0);
  head.writeUInt8(1, 4);
  head.writeUInt8(type, 5);
  head.writeUInt32BE(id, 8);
  head.writeUInt32BE(said.length, 12);
  process.stdout.write(Buffer.concat([head, said, body]));
}

async function run(id, body) {
  try {
    const reply = Buffer.from(JSON.stringify(await count(body)));
    send(REPLY, id, { content_type: 'application/json' }, reply);
  } catch (error) {
    const theirs = error instanceof TypeError && error.code === 'ERR_ENCODING_INVALID_ENCODED_DATA';
    if (!theirs) console.error(error);
    const title = theirs ? 'the body is not UTF-8' : String(error.message || error);
    send(FAIL, id, { title, status: theirs ? 422 : 500 });
  }
}

async function* frames(stream) {
  let pieces = [], held = 0, wanted = 16;  // joined only when a whole frame is there
  for await (const piece of stream) {
    pieces.push(piece);
    held += piece.length;
    while (held >= wanted) {
      const data = pieces.length > 1 ? Buffer.concat(pieces) : pieces[0];
      const size = 4 + data.readUInt32BE(0);
      if (held >= size) {
        const start = 16 + data.readUInt32BE(12);
        yield [data.readUInt8(5), data.readUInt32BE(8), data.subarray(start, size)];
      }
      const rest = held >= size ? data.subarray(size) : data;
      [pieces, held, wanted] = [[rest], rest.length, held >= size ? 16 : size];
    }
  }
}

async function main() {
  send(HELLO, 0, { protocol: 1, ordered: true });
  for await (const [type, id, body] of frames(process.stdin)) {
    if (type === COMMAND) await run(id, body);  // without await: answers in any order
    else if (type === PING) send(PONG, id);
    else if (type === DRAIN) break;
    // other types (WELCOME, CANCEL) ask nothing of a worker this simple
  }
  process.stdout.write('', () => process.exit(0));  // once all is written
}
main();
