// Which arrays a device stores as the call says stands on both sides of the border.

import { expect, test } from 'vitest';
import { read } from './sources.mjs';

/** The texts between quotes from `begin` up to the next `end`. */
function namesIn(text, begin, end) {
  const start = text.indexOf(begin);
  expect(start, begin).toBeGreaterThan(-1);
  const list = text.slice(start + begin.length, text.indexOf(end, start));
  return Array.from(list.matchAll(/["'](\w+)["']/g), ([, name]) => name);
}

test('the arrays that follow the storage of a call are the same in lib/ and native/', () => {
  const inNative = namesIn(read('native/dispatch_device.cc'), 'kStored[] = {', '};');
  const inLib = namesIn(
    read('lib/place.ts'),
    'FOLLOW_STORAGE: ReadonlySet<string> = new Set([',
    ']',
  );
  expect(inLib.length).toBeGreaterThan(5);
  // To lib/ a gradient is stored like the option that it belongs to.
  const gradients = inNative.filter((name) => name.endsWith('Gradient'));
  expect(inNative.filter((name) => !gradients.includes(name)).toSorted()).toEqual(inLib.toSorted());
  const options = gradients.map((name) => name.replace('Gradient', ''));
  expect(options.filter((name) => !inLib.includes(name))).toEqual([]);
});
