// The reader must take what the format's reference implementation writes, and refuse everything
// else with one clear line: no crash, no wrong number, no allocation that the file does not back.

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { execFile, execFileSync } from 'node:child_process';
import { promisify } from 'node:util';
import vm from 'node:vm';
import { Worker } from 'node:worker_threads';
import * as fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  readSafetensors,
  SafetensorsError,
  SafetensorsFile,
  writeSafetensors,
} from '../../dist/safetensors.js';
import { root } from './support/package.mjs';

let folder;
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'safetensors-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

let files = 0;
function fileOf(bytes) {
  const file = path.join(folder, `${++files}.safetensors`);
  writeFileSync(file, bytes);
  return file;
}

/** The bytes of a file with this header (an object, or a text as it stands) and these data. */
function encode(header, data = Buffer.alloc(0)) {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

const entry = (dtype, shape, begin, end) => ({ dtype, shape, data_offsets: [begin, end] });

describe('reads', () => {
  test('F32, F16 and BF16, in any order, with metadata and padding', () => {
    const data = Buffer.alloc(20);
    data.writeUInt16LE(0x3f80, 0); // bfloat16 1
    data.writeUInt16LE(0xc049, 2); // bfloat16 -3.140625
    data.writeFloatLE(0.1, 4);
    data.writeFloatLE(-0, 8);
    [0x3c00, 0xfbff, 0x0001, 0x7c00].forEach((bits, i) => data.writeUInt16LE(bits, 12 + 2 * i));
    const header = {
      half: entry('F16', [2, 2], 12, 20),
      __metadata__: { format: 'pt' },
      brain: entry('BF16', [2], 0, 4),
      full: entry('F32', [1, 2, 1], 4, 12),
    };
    const file = new SafetensorsFile(fileOf(encode(`${JSON.stringify(header)}   `, data)));
    expect(Array.from(file.tensors.keys())).toEqual(['half', 'brain', 'full']);
    expect(file.metadata.get('format')).toBe('pt');
    expect(file.tensors.get('full').shape).toEqual([1, 2, 1]);
    expect(Array.from(file.read('brain'))).toEqual([1, -3.140625]);
    expect(Array.from(file.read('full'))).toEqual([Math.fround(0.1), -0]);
    expect(Array.from(file.read('half'))).toEqual([1, -65504, 2 ** -24, Infinity]);
    file.close();
    expect(() => file.read('full')).toThrow('closed');
    file.close();
  });

  test('every half: finite ones exactly, infinities and NaN', () => {
    const data = Buffer.from(Uint16Array.from({ length: 65536 }, (_, i) => i).buffer);
    const halves = fileOf(encode({ x: entry('F16', [65536], 0, 131072) }, data));
    const values = readSafetensors(halves).get('x').data;
    for (let bits = 0; bits < 0x7c00; ++bits) {
      const exponent = bits >> 10;
      const expected =
        exponent === 0 ? bits * 2 ** -24 : (1 + (bits & 1023) / 1024) * 2 ** (exponent - 15);
      if (values[bits] !== expected || values[bits + 0x8000] !== -expected) {
        expect.fail(`half ${bits}: ${values[bits]}, expected ${expected}`);
      }
    }
    expect(Object.is(values[0x8000], -0)).toBe(true);
    expect([values[0x7c00], values[0xfc00]]).toEqual([Infinity, -Infinity]);
    expect(values.subarray(0x7c01, 0x8000).every(Number.isNaN)).toBe(true);
  });

  test('tensors longer than a chunk, empty ones, scalars and an empty file', () => {
    const count = 2 ** 18 + 3;
    const brain = Uint16Array.from({ length: count }, (_, i) => i & 0x7f7f);
    const data = Buffer.concat([Buffer.from(brain.buffer), Buffer.from([0, 0, 128, 63])]);
    const header = {
      long: entry('BF16', [count], 0, 2 * count),
      none: entry('F32', [0, 7], 2 * count, 2 * count),
      one: entry('F32', [], 2 * count, 2 * count + 4),
    };
    const tensors = readSafetensors(fileOf(encode(header, data)));
    const expected = new Float32Array(Uint32Array.from(brain, (bits) => bits << 16).buffer);
    expect(Buffer.from(tensors.get('long').data.buffer).equals(Buffer.from(expected.buffer))).toBe(
      true,
    );
    expect(tensors.get('none').data).toHaveLength(0);
    expect(Array.from(tensors.get('one').data)).toEqual([1]);
    expect(readSafetensors(fileOf(encode({}))).size).toBe(0);
  });

  test('lists other dtypes, but does not read them', () => {
    const file = new SafetensorsFile(
      fileOf(encode({ x: entry('I64', [1], 0, 8) }, Buffer.alloc(8))),
    );
    expect(file.tensors.get('x').dtype).toBe('I64');
    expect(() => file.read('x')).toThrow('expected F32, F16 or BF16');
    expect(() => file.read('y')).toThrow('no tensor "y"');
    file.close();
  });
});

describe('refuses', () => {
  const good = entry('F32', [1], 0, 4);
  const four = Buffer.alloc(4);
  const huge = Buffer.alloc(12);
  huge.writeBigUInt64LE(2n ** 63n);
  const cases = {
    'an empty file': [Buffer.alloc(0), /too few/],
    'a picture': [Buffer.from('\x89PNG\r\n\x1a\nrest of the picture', 'latin1'), /a header of/],
    'a header longer than the file': [huge, /a header of 9223372036854775808 bytes/],
    'no JSON': [encode('{"x":'), /not JSON/],
    'no UTF-8': [encode(Buffer.from([0x7b, 0xff, 0x7d]).toString('latin1')), /JSON/],
    'an array': [encode([]), /JSON object/],
    null: [encode('null'), /JSON object/],
    'an entry that is no object': [encode({ x: 3 }), /must be an object/],
    'an unknown dtype': [encode({ x: entry('F31', [1], 0, 4) }, four), /unknown dtype/],
    'a dtype of Object.prototype': [encode({ x: entry('toString', [1], 0, 4) }, four), /dtype/],
    'a negative size': [encode({ x: entry('F32', [-1], 0, 4) }, four), /valid shape/],
    'a fraction as size': [encode({ x: entry('F32', [0.5], 0, 4) }, four), /valid shape/],
    'a text as size': [encode({ x: entry('F32', ['1'], 0, 4) }, four), /valid shape/],
    'too many axes': [encode({ x: entry('F32', Array(33).fill(1), 0, 4) }, four), /valid shape/],
    'a product past 2^53': [encode({ x: entry('F32', [2 ** 40, 2 ** 40], 0, 4) }, four), /large/],
    'offsets that are none': [encode({ x: { dtype: 'F32', shape: [1] } }, four), /data_offsets/],
    'offsets in reverse': [encode({ x: entry('F32', [1], 4, 0) }, four), /takes -4 bytes/],
    'a wrong extent': [encode({ x: entry('F32', [2], 0, 4) }, four), /needs 8/],
    truncation: [encode({ x: good }, Buffer.alloc(3)), /truncated/],
    'a hole': [encode({ x: entry('F32', [1], 4, 8) }, Buffer.alloc(8)), /hole/],
    overlap: [encode({ x: good, y: good }, four), /overlaps/],
    'bytes of nobody': [encode({ x: good }, Buffer.alloc(9)), /5 bytes belong to no tensor/],
    'metadata that is no text': [encode({ __metadata__: { a: 1 } }), /__metadata__/],
  };

  test.each(Object.entries(cases))('%s', (_, [bytes, message]) => {
    const file = fileOf(bytes);
    expect(() => readSafetensors(file)).toThrow(SafetensorsError);
    expect(() => readSafetensors(file)).toThrow(message);
    try {
      readSafetensors(file);
    } catch (error) {
      expect(error.message).toContain(file);
      expect(error.message).not.toContain('\n');
    }
  });

  test('a folder, a pipe that nobody writes, a missing file', () => {
    expect(() => new SafetensorsFile(folder)).toThrow('not a regular file');
    const pipe = path.join(folder, 'pipe');
    execFileSync('mkfifo', [pipe]);
    expect(() => new SafetensorsFile(pipe)).toThrow('not a regular file');
    expect(() => new SafetensorsFile(path.join(folder, 'nowhere'))).toThrow('ENOENT');
  });

  test('or reads: any bytes, and any damage to a valid file', () => {
    const valid = encode(
      { a: entry('F16', [3], 0, 6), b: entry('F32', [2, 1], 6, 14) },
      Buffer.alloc(14, 7),
    );
    const read = (bytes) => {
      try {
        for (const { shape, data } of readSafetensors(fileOf(bytes)).values()) {
          expect(data).toHaveLength(shape.reduce((a, b) => a * b, 1));
        }
      } catch (error) {
        expect(error).toBeInstanceOf(SafetensorsError);
      }
    };
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => read(bytes)),
      { numRuns: 200 },
    );
    const place = fc.nat(valid.length - 1);
    fc.assert(
      fc.property(fc.array(fc.tuple(place, fc.nat(255)), { maxLength: 4 }), place, (bytes, cut) => {
        const damaged = Buffer.from(valid);
        for (const [at, byte] of bytes) damaged[at] = byte;
        read(damaged);
        read(damaged.subarray(0, cut));
      }),
      { numRuns: 400 },
    );
  });
});

describe('writes', () => {
  test('what it reads, views and odd names included', () => {
    const file = path.join(folder, 'written.safetensors');
    const data = new Float32Array([9, 1, NaN, -0, 1e-45, 9]).subarray(1, 5);
    const tensors = { __proto__: null, 'a/"b"': { shape: [2, 2], data } };
    Object.defineProperty(tensors, '__proto__', {
      value: { shape: [0], data: new Float32Array(0) },
      enumerable: true,
    });
    writeSafetensors(file, tensors, { note: 'x' });
    const read = readSafetensors(file);
    expect(Array.from(read.keys()).toSorted()).toEqual(['__proto__', 'a/"b"']);
    expect(Array.from(read.get('a/"b"').data)).toEqual(Array.from(data));
    expect(new SafetensorsFile(file).metadata.get('note')).toBe('x');
    expect(readFileSync(file).readBigUInt64LE() % 8n).toBe(0n);
  });

  test('no things that are no tensors', () => {
    const file = path.join(folder, 'kinds.safetensors');
    const data = new Float32Array(1);
    const all = [undefined, null, 5, 'text', [], [{ shape: [1], data }], Promise.resolve({}), data];
    const one = [null, 5, {}, { data }, { shape: 1, data }, { shape: ['1'], data }];
    const named = new Map([[5, { shape: [1], data }]]);
    for (const tensors of [...all, ...one.map((a) => ({ a })), named]) {
      expect(() => writeSafetensors(file, tensors)).toThrow(
        expect.objectContaining({ name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE' }),
      );
    }
    expect(existsSync(file)).toBe(false);
    for (const nowhere of [undefined, null, 5, {}, new URL('file:///tmp/x')]) {
      expect(() => writeSafetensors(nowhere, { a: { shape: [1], data } })).toThrow(
        /^path must be a string, received/,
      );
    }
  });

  test('tensors of another realm', () => {
    const file = path.join(folder, 'realm.safetensors');
    const tensor = '{ shape: [2], data: Float32Array.of(3, 4) }';
    for (const tensors of [`({ x: ${tensor} })`, `new Map([['x', ${tensor}]])`]) {
      writeSafetensors(file, vm.runInNewContext(tensors));
      expect(Array.from(readSafetensors(file).get('x').data)).toEqual([3, 4]);
    }
  });

  test('nothing that would not be read, and nothing where there is no place', () => {
    const tensor = { shape: [3], data: new Float32Array(2) };
    const file = path.join(folder, 'refused.safetensors');
    expect(() => writeSafetensors(file, { tensor })).toThrow(SafetensorsError);
    const fitting = new Map([['x', { shape: [2], data: new Float32Array(2) }]]);
    for (const metadata of [{ step: 3 }, { note: undefined }, ['x', 1], 'text']) {
      expect(() => writeSafetensors(file, fitting, metadata)).toThrow(/__metadata__ must map/);
    }
    expect(() => writeSafetensors(path.join(folder, 'no', 'where'), fitting)).toThrow('ENOENT');
    expect(() => writeSafetensors(folder, fitting)).toThrow();
    const folders = [folder, path.dirname(folder)].flatMap((each) => readdirSync(each));
    const drafts = new RegExp(`refused|${path.basename(folder)}\\..*tmp`);
    expect(folders.filter((name) => drafts.test(name) || /^kinds.*tmp/.test(name))).toEqual([]);
  });
});

describe('writes where', () => {
  const one = (value) => ({ x: { shape: [1], data: Float32Array.of(value) } });
  const read = (file) => readSafetensors(file).get('x').data[0];

  test('a link leads: it stays, and what it names is replaced or made', () => {
    const inside = mkdtempSync(path.join(folder, 'links-'));
    const at = (...names) => path.join(inside, ...names);
    mkdirSync(at('far', 'away'), { recursive: true });
    symlinkSync(path.join('far', 'away'), at('there'));
    // Its target is beside the folder that `there` names, not beside `there`.
    symlinkSync(path.join('..', 'real'), at('far', 'away', 'link'));
    symlinkSync(at('there', 'link'), at('first'));
    for (const value of [1, 2]) {
      writeSafetensors(at('first'), one(value)); // dangling, then not
      expect(readdirSync(at('far')).toSorted()).toEqual(['away', 'real']);
      expect(read(at('far', 'real'))).toBe(value);
    }
    expect(readlinkSync(at('first'))).toBe(at('there', 'link'));
    expect(readdirSync(inside).toSorted()).toEqual(['far', 'first', 'there']);
    symlinkSync('loop', at('loop'));
    expect(() => writeSafetensors(at('loop'), one(1))).toThrow('ELOOP');
  });

  test('a pipe is: it stays what it is', async () => {
    const pipe = path.join(folder, 'reader');
    execFileSync('mkfifo', [pipe]);
    const reading = promisify(execFile)('cat', [pipe], { encoding: 'buffer' });
    writeSafetensors(pipe, one(7));
    const { stdout } = await reading;
    expect(read(fileOf(stdout))).toBe(7);
    expect(statSync(pipe).isFIFO()).toBe(true);
    const standard = path.join(folder, 'standard');
    symlinkSync('/dev/fd/1', standard);
    const script = `require('./dist/safetensors.js').writeSafetensors('${standard}', {})`;
    const shell = `"${process.execPath}" -e "${script}" | cat`;
    const output = execFileSync('sh', ['-c', shell], { cwd: root });
    expect(readSafetensors(fileOf(output)).size).toBe(0);
  });

  test('several threads write: each file is whole', async () => {
    const file = path.join(folder, 'shared.safetensors');
    const code = `
      const { parentPort, workerData } = require('node:worker_threads');
      const { writeSafetensors } = require(workerData.module);
      const data = new Float32Array(50_000).fill(workerData.value);
      for (let i = 0; i < 40; ++i) {
        writeSafetensors(workerData.file, { x: { shape: [50_000], data } });
      }
      parentPort.postMessage('done');`;
    const module = path.join(root, 'dist', 'safetensors.js');
    const workers = [1, 2].map((value) => {
      const worker = new Worker(code, { eval: true, workerData: { module, file, value } });
      return new Promise((resolve, reject) => {
        worker.on('message', resolve).on('error', reject);
      });
    });
    expect(await Promise.all(workers)).toEqual(['done', 'done']);
    const { data } = readSafetensors(file).get('x');
    expect(data.every((value) => value === data[0])).toBe(true);
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });
});

test('is a module of its own that loads no addon', () => {
  const script = `
    const { readSafetensors } = require('cluster-attention/safetensors');
    const addons = Object.keys(require.cache).filter((file) => file.endsWith('.node'));
    console.log(typeof readSafetensors, addons.length);
  `;
  const output = execFileSync(process.execPath, ['-e', script], { cwd: root, encoding: 'utf8' });
  expect(output).toBe('function 0\n');
});
