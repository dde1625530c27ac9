// The picture that the demo denoises when it is given none: a still life, rendered by
// still-life/render.mjs. Tiles, stripes, zigzags and letters repeat, which is what non-local means
// lives from; leaves, fruit, folds and soft shadows are what it must not destroy.

import { render } from './still-life/render.mjs';
import { renderTextures } from './still-life/textures.mjs';

/** Drawn at one size, whatever the demo's: resizing it is the antialiasing. */
const SIZE = 512;

/** @returns {Promise<{ data: Buffer, width: number, height: number }>} RGB bytes */
export async function drawStillLife() {
  const data = await render(await renderTextures(), SIZE);
  return { data, width: SIZE, height: SIZE };
}
