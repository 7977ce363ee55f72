// What the reader asks of its server. All addresses are relative to the result's own.

const ARRAYS = {
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  float32: Float32Array,
  float64: Float64Array,
};

/** An answer other than 2xx, with the server's own words where it sent some. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, { cache: "no-store", ...options });
  } catch {
    throw new Refused(0, "The server does not answer. Check the connection and try again.");
  }
  if (answer.ok) return answer;
  let detail = `The server answered ${answer.status}.`;
  try {
    const body = await answer.json();
    if (typeof body.detail === "string") detail = body.detail;
  } catch {
    // Not JSON: the status has to do.
  }
  throw new Refused(answer.status, detail);
}

export const getJson = async (address) => (await ask(address)).json();
export const send = async (address, method, body, type) =>
  (await ask(address, { method, body, headers: type ? { "Content-Type": type } : {} })).json();

/**
 * A typed array of exactly `count` elements. `onBytes(received, total)` is called as it arrives;
 * the total is known from the shape, since a compressed answer's length says nothing of it.
 */
export async function getArray(address, dtype, count, onBytes = () => {}) {
  const Kind = ARRAYS[dtype];
  if (!Kind) throw new Refused(0, `The reader cannot show voxels of type ${dtype}.`);
  const answer = await ask(address);
  const total = count * Kind.BYTES_PER_ELEMENT;
  const bytes = new Uint8Array(total);
  const stream = answer.body.getReader();
  let received = 0;
  for (;;) {
    const { done, value } = await stream.read();
    if (done) break;
    if (received + value.length > total) {
      throw new Refused(0, `The data is longer than the ${total} bytes expected.`);
    }
    bytes.set(value, received);
    received += value.length;
    onBytes(received, total);
  }
  if (received !== total) {
    const got = `${received} of ${total} bytes`;
    throw new Refused(0, `The data ended after ${got}. Load the page again.`);
  }
  return new Kind(bytes.buffer);
}
