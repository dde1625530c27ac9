/**
 * Makes the Vjp forms of an operation: its value, and the vector-Jacobian product that carries a
 * gradient of the output back to the inputs. In between lives the saved state: the inputs, the
 * results that the gradient reads, and the discrete choices that it takes as constants.
 *
 * Of the inputs the asynchronous form holds copies and the synchronous form the caller's own float
 * arrays; whatever decides where the native code reads and writes (labels, indices, lengths) is
 * always a copy, and so is every result that the caller can see.
 */
import type { NativeOperation } from './binding';
import { allocate, type Axes, copyOf } from './arrays';
import { Call, type Form } from './call';
import { CPU } from './device-name';
import { disposed, invalidType, outOfRange, shapeMismatch } from './errors';
import * as intrinsics from './intrinsics';
import { computeAsync, computeSync, type Settings } from './native-call';
import { named, type Operation, type Prepared, runAsync, runSync } from './operation';
import { isAbsent, readOwn } from './options';

/** A call whose gradients may be asked for. */
export interface PreparedGradient extends Prepared {
  /** The fields that the native gradient reads, once the call has succeeded. */
  saved(): object;
}

/** An operation that has gradients. */
export interface DifferentiableOperation extends Operation {
  readonly gradient: {
    readonly native: NativeOperation;
    /** The options that gradients belong to; one that was not given has none. */
    readonly options: readonly string[];
  };
  prepare(call: Call): PreparedGradient;
}

/** The Vjp form that computes on the calling thread. */
export function synchronousVjp<Callable>(operation: DifferentiableOperation): Callable {
  const name = `${operation.name}VjpSync`;
  return named(name, (options: unknown): unknown => {
    const call = new Call(name, 'sync', options, operation, true);
    const prepared = operation.prepare(call);
    runSync(operation, call, prepared);
    return withGradients(operation, call, prepared, 'sync');
  });
}

/** The Vjp form that computes on the thread pool; it never throws, nor does its `backward`. */
export function asynchronousVjp<Callable>(operation: DifferentiableOperation): Callable {
  const name = `${operation.name}Vjp`;
  return named(name, async (options: unknown): Promise<unknown> => {
    const call = new Call(name, 'async', options, operation, true);
    call.signal?.throwIfAborted();
    const prepared = operation.prepare(call);
    await runAsync(operation, call, prepared);
    return withGradients(operation, call, prepared, 'async');
  });
}

function withGradients(
  operation: DifferentiableOperation,
  call: Call,
  prepared: PreparedGradient,
  form: Form,
): object {
  const result = prepared.result();
  const value = ArrayBuffer.isView(result) ? { output: result } : (result as object);
  return { ...value, ...methods(new SavedState(operation, call, prepared, value), form) };
}

/** They close over the state alone, so that dispose() leaves nothing behind. */
function methods(state: SavedState, form: Form): object {
  const backward =
    form === 'sync'
      ? (gradOutput: unknown, options?: unknown): unknown => state.backwardSync(gradOutput, options)
      : (gradOutput: unknown, options?: unknown): unknown =>
          state.backwardAsync(gradOutput, options);
  const dispose = (): void => state.dispose();
  return { backward, dispose, [Symbol.dispose]: dispose };
}

type Fields = Readonly<Record<string, unknown>>;

/** A backward call that is ready to run. */
interface Backward {
  readonly signal: AbortSignal | undefined;
  readonly request: readonly object[];
  readonly gradients: Readonly<Record<string, Float32Array>>;
}

class SavedState {
  readonly #operation: DifferentiableOperation;
  readonly #settings: Settings;
  readonly #outputAxes: Axes;
  /** Lengths of the gradients, by name. */
  readonly #gradients: ReadonlyMap<string, number>;
  /** Lengths of the arrays, by name: those of the caller can be detached or resized meanwhile. */
  readonly #lengths: ReadonlyMap<string, number>;
  #fields: Fields | undefined;

  constructor(
    operation: DifferentiableOperation,
    call: Call,
    prepared: PreparedGradient,
    value: object,
  ) {
    this.#operation = operation;
    const { nonFinite, precision, storage } = call;
    const form = `backward of ${operation.name}`;
    this.#settings = { name: form, nonFinite, precision, device: CPU, storage };
    this.#outputAxes = call.outputAxes;
    const given: Fields = Object.assign(Object.create(null), ...prepared.request);
    this.#gradients = new Map(
      operation.gradient.options
        .filter((name) => intrinsics.kindOf(given[name]) !== undefined)
        .map((name) => [name, intrinsics.lengthOf(given[name])]),
    );
    const saved = prepared.saved();
    const visible = new Set(Object.values(value));
    const lengths = new Map<string, number>();
    const fields: Record<string, unknown> = { ...saved };
    for (const [name, field] of Object.entries(saved)) {
      if (intrinsics.kindOf(field) === undefined) continue;
      lengths.set(name, intrinsics.lengthOf(field));
      if (!visible.has(field)) continue;
      const array = field as intrinsics.TypedArray;
      fields[name] = copyOf(name, intrinsics.kindOf(array) as intrinsics.TypedArrayKind, array);
    }
    this.#lengths = lengths;
    this.#fields = fields;
  }

  dispose(): void {
    this.#fields = undefined;
  }

  backwardSync(gradOutput: unknown, options: unknown): unknown {
    const { request, gradients } = this.#prepare('sync', gradOutput, options);
    const error = computeSync(this.#operation.gradient.native, this.#settings, request);
    if (error !== undefined) throw error;
    return gradients;
  }

  async backwardAsync(gradOutput: unknown, options: unknown): Promise<unknown> {
    const { signal, request, gradients } = this.#prepare('async', gradOutput, options);
    signal?.throwIfAborted();
    const { native } = this.#operation.gradient;
    const error = await computeAsync(native, this.#settings, request, signal);
    if (error !== undefined) throw error;
    return gradients;
  }

  #prepare(form: Form, gradOutput: unknown, options: unknown): Backward {
    const { gradients: wanted, signal } = readOwn('options', options ?? {}, BACKWARD_OPTIONS);
    const source = { gradOutput, signal };
    const call = new Call('backward', form, source, { options: Object.keys(source) });
    const names = wantedNames(wanted, Array.from(this.#gradients.keys()));
    // From here on no code of the caller runs.
    const fields = this.#fields;
    if (fields === undefined) throw disposed('backward');
    this.#checkArrays(fields);
    const upstream = call.floats('gradOutput', this.#outputAxes);
    const arrays = names.map((name) =>
      allocate('Float32Array', `the gradient of ${name}`, { length: this.#gradients.get(name)! }),
    );
    // Defined, not assigned: a setter on a polluted Object.prototype must not get them.
    const gradients = Object.fromEntries(names.map((name, i) => [name, arrays[i]!]));
    const destinations = Object.fromEntries(
      names.map((name, i) => [`${name}Gradient`, arrays[i]!]),
    );
    return {
      signal: call.signal,
      request: [fields, { gradOutput: upstream }, destinations],
      gradients,
    };
  }

  #checkArrays(fields: Fields): void {
    for (const [name, length] of this.#lengths) {
      const now = intrinsics.lengthOf(fields[name]);
      if (now === length) continue;
      throw shapeMismatch(
        name,
        `an array of ${length} elements until dispose()`,
        `${now} elements: it was detached or resized meanwhile`,
      );
    }
  }
}

const BACKWARD_OPTIONS = ['gradients', 'signal'] as const;

/** The names in the option `gradients`, all of them when it is absent. */
function wantedNames(wanted: unknown, known: readonly string[]): readonly string[] {
  if (isAbsent(wanted)) return known;
  if (!Array.isArray(wanted)) throw invalidType('gradients', 'an array of option names', wanted);
  const names = Array.from(wanted as unknown[]);
  names.forEach((name, index) => {
    if (known.includes(name as string)) return;
    throw outOfRange('gradients', `filled with names out of ${known.join(', ')}`, name, index);
  });
  return names as string[];
}
