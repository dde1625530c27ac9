/**
 * Makes the Vjp forms of an operation: its value, and the vector-Jacobian product that carries a
 * gradient of the output back to the inputs. In between lives the saved state: the inputs, the
 * results that the gradient reads, and the discrete choices that it takes as constants.
 *
 * Of the inputs the asynchronous form holds copies and the synchronous form the caller's own float
 * arrays; whatever decides where the native code reads and writes (labels, indices, lengths) is
 * always a copy, and so is every result that the caller can see. The memory of DeviceTensors is
 * shared: what is theirs cannot be written but as the `out` of another call, which takes floats
 * alone.
 */
import { throwIfAborted } from './abort';
import type { NativeOperation } from './binding';
import { type Axes, copyOf } from './arrays';
import { Call, type Floats, type Form } from './call';
import { isDeviceTensor, shareTensor } from './device-tensor';
import { disposed, invalidType, outOfRange, shapeMismatch } from './errors';
import * as intrinsics from './intrinsics';
import type { TypedArray, TypedArrayKind } from './intrinsics';
import { computeAsync, computeSync, type Settings } from './native-call';
import { asObject, named, type Operation, type Prepared, runAsync, runSync } from './operation';
import { isAbsent, readOwn } from './options';
import type { Place } from './place';

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
    const call = new Call(name, 'sync', options, operation, { differentiable: true });
    const prepared = prepare(operation, call);
    runSync(operation, call, prepared);
    return withGradients(operation, call, prepared, 'sync');
  });
}

/** The Vjp form that computes on the thread pool; it never throws, nor does its `backward`. */
export function asynchronousVjp<Callable>(operation: DifferentiableOperation): Callable {
  const name = `${operation.name}Vjp`;
  return named(name, async (options: unknown): Promise<unknown> => {
    const call = new Call(name, 'async', options, operation, { differentiable: true });
    throwIfAborted(call.signal);
    const prepared = prepare(operation, call);
    await runAsync(operation, call, prepared);
    return withGradients(operation, call, prepared, 'async');
  });
}

/** What a call that fails here has on the device must not wait for the garbage collector. */
function prepare(operation: DifferentiableOperation, call: Call): PreparedGradient {
  try {
    return operation.prepare(call);
  } catch (error) {
    call.discard();
    throw error;
  }
}

function withGradients(
  operation: DifferentiableOperation,
  call: Call,
  prepared: PreparedGradient,
  form: Form,
): object {
  try {
    const value = asObject(prepared.result());
    return { ...value, ...methods(new SavedState(operation, call, prepared, value), form) };
  } catch (error) {
    call.discard();
    throw error;
  }
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
  readonly call: Call;
  readonly request: readonly object[];
  readonly gradients: Readonly<Record<string, Floats>>;
}

class SavedState {
  readonly #operation: DifferentiableOperation;
  readonly #settings: Settings;
  /** Where the call computed: its gradients belong there too. */
  readonly #place: Place;
  readonly #outputAxes: Axes;
  /** Dimensions of the gradients, by name. */
  readonly #gradients: ReadonlyMap<string, Axes>;
  /** Lengths of the arrays, by name: those of the caller can be detached or resized meanwhile. */
  readonly #lengths = new Map<string, number>();
  #fields: Fields | undefined;

  constructor(
    operation: DifferentiableOperation,
    call: Call,
    prepared: PreparedGradient,
    value: object,
  ) {
    this.#operation = operation;
    const { nonFinite, precision, device, storage } = call;
    const form = `backward of ${operation.name}`;
    this.#settings = { name: form, nonFinite, precision, device, storage };
    this.#place = call.place;
    this.#outputAxes = call.outputAxes;
    const given: Fields = Object.assign(Object.create(null), ...prepared.request);
    this.#gradients = new Map(
      operation.gradient.options
        .filter((name) => isArray(given[name]))
        .map((name) => [name, call.axesOf(name)!]),
    );
    const visible = new Set<unknown>(Object.values(value));
    this.#fields = this.#own(prepared.saved(), visible);
    for (const field of Object.values(this.#fields)) visible.add(field);
    call.discard(visible);
  }

  /** What is saved, with something of its own in the place of each array that the caller can see. */
  #own(saved: object, visible: ReadonlySet<unknown>): Fields {
    const fields: Record<string, unknown> = { ...saved };
    for (const [name, field] of Object.entries(saved)) {
      if (isDeviceTensor(field)) {
        if (visible.has(field)) fields[name] = shareTensor(field);
        continue;
      }
      const kind = intrinsics.kindOf(field);
      if (kind === undefined) continue;
      this.#lengths.set(name, intrinsics.lengthOf(field));
      if (visible.has(field)) {
        fields[name] = copyOf(name, kind as TypedArrayKind, field as TypedArray);
      }
    }
    return fields;
  }

  dispose(): void {
    for (const field of Object.values(this.#fields ?? {})) {
      if (isDeviceTensor(field)) field.dispose();
    }
    this.#fields = undefined;
  }

  backwardSync(gradOutput: unknown, options: unknown): unknown {
    const { call, request, gradients } = this.#prepare('sync', gradOutput, options);
    const error = computeSync(this.#operation.gradient.native, this.#settings, request);
    if (error === undefined) return gradients;
    call.discard();
    throw error;
  }

  async backwardAsync(gradOutput: unknown, options: unknown): Promise<unknown> {
    const { call, request, gradients } = this.#prepare('async', gradOutput, options);
    const { native } = this.#operation.gradient;
    try {
      throwIfAborted(call.signal);
      const error = await computeAsync(native, this.#settings, request, call.signal);
      if (error !== undefined) throw error;
    } catch (error) {
      call.discard();
      throw error;
    }
    return gradients;
  }

  #prepare(form: Form, gradOutput: unknown, options: unknown): Backward {
    const { gradients: wanted, signal } = readOwn('options', options ?? {}, BACKWARD_OPTIONS);
    const source = { gradOutput, signal };
    const known = { options: Object.keys(source) };
    const call = new Call('backward', form, source, known, { place: this.#place });
    const names = wantedNames(wanted, Array.from(this.#gradients.keys()));
    // From here on no code of the caller runs.
    const fields = this.#fields;
    if (fields === undefined) throw disposed('backward');
    this.#checkArrays(fields);
    const upstream = call.floats('gradOutput', this.#outputAxes);
    const arrays = names.map((name) => {
      const axes = this.#gradients.get(name)!;
      return call.result('Float32Array', `the gradient of ${name}`, axes, name);
    });
    // Defined, not assigned: a setter on a polluted Object.prototype must not get them.
    const gradients = Object.fromEntries(names.map((name, i) => [name, arrays[i]!]));
    const destinations = Object.fromEntries(
      names.map((name, i) => [`${name}Gradient`, arrays[i]!]),
    );
    return { call, request: [fields, { gradOutput: upstream }, destinations], gradients };
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

function isArray(value: unknown): boolean {
  return intrinsics.kindOf(value) !== undefined || isDeviceTensor(value);
}

const BACKWARD_OPTIONS = ['gradients', 'signal'] as const;

/** The names in the option `gradients`, all of them when it is absent. */
function wantedNames(wanted: unknown, known: readonly string[]): readonly string[] {
  if (isAbsent(wanted)) return known;
  if (!Array.isArray(wanted)) throw invalidType('gradients', 'an array of option names', wanted);
  const names = Array.from(wanted as unknown[]);
  names.forEach((name, index) => {
    if (typeof name !== 'string') {
      throw invalidType(`gradients[${index}]`, 'the name of an option', name);
    }
    if (known.includes(name)) return;
    throw outOfRange('gradients', `filled with names out of ${known.join(', ')}`, name, index);
  });
  return names as string[];
}
