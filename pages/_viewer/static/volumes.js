// Volumes over HTTP: one byte a voxel, fetched once per address, checked for size, kept in a small cache.

const KEPT = 32;
const cache = new Map();

/** The voxels behind `url`, C order over (x, y, z). Rejects with a sentence that can be shown. */
export function volume(url, size, what) {
  if (!url) return Promise.reject(new Error(`No address was given for ${what}.`));
  const known = cache.get(url);
  cache.delete(url);
  const promise = known ?? load(url, size, what).catch((error) => {
    cache.delete(url);
    throw error;
  });
  cache.set(url, promise);
  while (cache.size > KEPT) cache.delete(cache.keys().next().value);
  return promise;
}

async function load(url, size, what) {
  let answer;
  try {
    answer = await fetch(url);
  } catch {
    throw new Error(`The server did not answer for ${what}. Is it still running?`);
  }
  if (!answer.ok) throw new Error(`The server has no ${what} (${answer.status}: ${(await answer.text()).slice(0, 300)})`);
  const bytes = await unpacked(new Uint8Array(await answer.arrayBuffer()));
  if (bytes.length !== size) {
    throw new Error(`The ${what} has ${bytes.length} voxels, but the grid has ${size}. Score the subject again.`);
  }
  return bytes;
}

async function unpacked(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes; // the browser undid Content-Encoding already
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
