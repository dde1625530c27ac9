/** Reads the command line of every command; anything wrong is a UsageError. */
import { accessSync, constants, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { parseArgs, type ParseArgsConfig } from 'node:util';
import { UsageError } from './usage';

type Options = NonNullable<ParseArgsConfig['options']>;

/** The options that were given, as text; `positionals` says how many other words may stand. */
export class Arguments {
  readonly positionals: readonly string[];
  readonly #values: Readonly<Record<string, string | boolean | undefined>>;

  /** @param names of options with a value @param flags without, besides --help */
  constructor(
    parameters: readonly string[],
    names: readonly string[],
    flags: readonly string[],
    positionals = 0,
  ) {
    const options: Options = Object.fromEntries<Options[string]>([
      ...names.map((name) => [name, { type: 'string' }] as const),
      ...flags.map((name) => [name, { type: 'boolean' }] as const),
      ['help', { type: 'boolean', short: 'h' }],
    ]);
    try {
      const parsed = parseArgs({ args: [...parameters], options, allowPositionals: true });
      this.#values = parsed.values as Record<string, string | boolean>;
      this.positionals = parsed.positionals;
    } catch (error) {
      throw new UsageError((error as Error).message.split('. ')[0]!);
    }
    const surplus = this.positionals[positionals];
    if (surplus !== undefined) throw new UsageError(`unexpected "${surplus}"`);
  }

  flag(name: string): boolean {
    return this.#values[name] === true;
  }

  has(name: string): boolean {
    return this.#values[name] !== undefined;
  }

  text(name: string): string | undefined {
    return this.#values[name] as string | undefined;
  }

  /** One of the names. */
  choice<Name extends string>(name: string, names: readonly Name[], fallback: Name): Name {
    return this.choices(name, names, [fallback], 1)[0]!;
  }

  /** Names out of a set, separated by commas. */
  choices<Name extends string>(
    name: string,
    names: readonly Name[],
    fallback: readonly Name[],
    most = Infinity,
  ): readonly Name[] {
    const words = this.#words(name, most);
    const unknown = words?.find((word) => !names.includes(word as Name));
    if (unknown !== undefined) {
      throw new UsageError(`unknown --${name} "${unknown}", expected ${names.join(', ')}`);
    }
    return (words as Name[] | undefined) ?? fallback;
  }

  integer(name: string, least: number, most: number, fallback: number): number {
    return this.integers(name, least, most, [fallback], 1)[0]!;
  }

  /** Whole numbers in a range, separated by commas. */
  integers(
    name: string,
    least: number,
    most: number,
    fallback: readonly number[],
    count = Infinity,
  ): readonly number[] {
    return (
      this.#words(name, count)?.map((word) => {
        const number = /^\d+$/.test(word) ? Number(word) : NaN;
        if (number >= least && number <= most) return number;
        throw new UsageError(
          `--${name} expects a whole number from ${least} to ${most}, received "${word}"`,
        );
      }) ?? fallback
    );
  }

  /** A positive number. */
  real(name: string, fallback: number): number {
    const word = this.#words(name, 1)?.[0];
    if (word === undefined) return fallback;
    const number = /^[\d.]+(e[+-]?\d+)?$/i.test(word) ? Number(word) : NaN;
    if (number > 0 && number < Infinity) return number;
    throw new UsageError(`--${name} expects a number > 0, received "${word}"`);
  }

  /** The path of a file that is to be written; whether it can be is asked before hours of work. */
  writablePath(name: string): string | undefined {
    const path = this.text(name);
    if (path === undefined) return undefined;
    try {
      if (path === '') throw new Error('the path is empty');
      const there = statSync(path, { throwIfNoEntry: false });
      if (there?.isDirectory() === true) throw new Error('a folder');
      // A file is replaced, which its folder must allow; what else is there is written through.
      const replaced = there === undefined || there.isFile();
      accessSync(replaced ? dirname(path) : path, constants.W_OK);
      if (!statSync(dirname(path)).isDirectory()) throw new Error('its parent is no folder');
    } catch (error) {
      throw new UsageError(`--${name}: cannot write ${path}: ${(error as Error).message}`);
    }
    return path;
  }

  #words(name: string, most: number): string[] | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const words = text.split(',').map((word) => word.trim());
    if (words.includes('')) throw new UsageError(`--${name} has an empty value`);
    if (words.length > most) throw new UsageError(`--${name} takes one value, received "${text}"`);
    return Array.from(new Set(words));
  }
}
