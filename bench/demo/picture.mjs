// Pictures as { pixels, width, height }: RGB, 0 to 255, as floats that may leave that range.

import { readFile } from 'node:fs/promises';

import sharp from 'sharp';

import { fileError, UsageError } from './options.mjs';
import { createNormal } from './random.mjs';
import { drawStillLife } from './still-life.mjs';

/** Flattens, resizes to `size` on the longest side, and reads the pixels. */
async function toPicture(image, size) {
  const { data, info } = await image
    .autoOrient()
    .flatten({ background: '#fff' })
    .toColourspace('srgb')
    .resize(size, size, { fit: 'inside' })
    .raw()
    .toBuffer({ resolveWithObject: true });
  return { pixels: Float32Array.from(data), width: info.width, height: info.height };
}

/** Reads any picture that sharp can read. */
export async function readPicture(path, size) {
  let bytes;
  try {
    bytes = await readFile(path);
  } catch (error) {
    throw fileError(`read ${path}`, error);
  }
  try {
    return await toPicture(sharp(bytes, { failOn: 'error' }), size);
  } catch {
    throw new UsageError(`${path} is not a picture that can be read`);
  }
}

/** The test picture. */
export async function drawPicture(size) {
  const { data, width, height } = await drawStillLife();
  return toPicture(sharp(data, { raw: { width, height, channels: 3 } }), size);
}

/** The picture with Gaussian noise of deviation `sigma` in every channel of every pixel. */
export function addNoise(picture, sigma, seed) {
  const normal = createNormal(seed);
  return { ...picture, pixels: picture.pixels.map((value) => value + sigma * normal()) };
}

/** What a file or a screen can hold of the pixels. */
function toBytes({ pixels }) {
  return Buffer.from(Uint8ClampedArray.from(pixels).buffer);
}

/** Root mean square difference of two pictures as bytes, in grey levels of 255. */
export function difference(a, b) {
  const [left, right] = [toBytes(a), toBytes(b)];
  const sum = left.reduce((total, value, index) => total + (value - right[index]) ** 2, 0);
  return Math.sqrt(sum / left.length);
}

/** Peak signal-to-noise ratio in dB, of the pictures as bytes. */
export function psnr(picture, original) {
  return 20 * Math.log10(255 / difference(picture, original));
}

/** A PNG, every pixel `scale` × `scale`. */
export function toPng(picture, scale = 1) {
  const { width, height } = picture;
  return sharp(toBytes(picture), { raw: { width, height, channels: 3 } })
    .resize(width * scale, height * scale, { kernel: 'nearest' })
    .png({ compressionLevel: 9 })
    .toBuffer();
}
