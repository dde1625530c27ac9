/** A transformer encoder with a classifier on top, of every token or of the whole sequence. */
import { makeAttention, type Attend, type AttentionSizes, type Kind } from './attention';
import {
  add,
  crossEntropy,
  embed,
  layerNorm,
  linear,
  meanOfRows,
  relu,
  type Verdict,
} from './layers';
import { Parameters, type Parameter } from './parameters';
import type { Random } from './random';

/** What a task asks of a model. */
export interface Question {
  readonly vocabulary: number;
  readonly classes: number;
  readonly length: number;
  /** Whether every token has a target; else one per sequence. */
  readonly perToken: boolean;
}

export interface Batch {
  readonly tokens: Int32Array; // (B,L)
  readonly targets: Int32Array; // (B,L) or (B), -1: not asked
  readonly lengths?: Int32Array; // (B), real tokens
}

export interface ModelSizes {
  readonly dim: number;
  readonly heads: number;
  readonly hidden: number;
  readonly layers: number;
}

interface Affine {
  readonly weight: Parameter;
  readonly bias: Parameter;
}

interface Norm {
  readonly scale: Parameter;
  readonly shift: Parameter;
}

interface EncoderLayer {
  readonly attend: Attend;
  readonly before: Norm;
  readonly query: Affine;
  readonly key: Affine;
  readonly value: Affine;
  readonly output: Affine;
  readonly between: Norm;
  readonly widen: Affine;
  readonly narrow: Affine;
}

export class Model {
  readonly parameters: Parameters;
  readonly #question: Question;
  readonly #sizes: ModelSizes;
  readonly #tokens: Parameter;
  readonly #positions: Parameter;
  readonly #layers: EncoderLayer[] = [];
  readonly #after: Norm;
  readonly #classifier: Affine;

  constructor(kind: Kind, question: Question, sizes: ModelSizes, random: Random) {
    this.parameters = new Parameters(random);
    this.#question = question;
    this.#sizes = sizes;
    const { dim } = sizes;
    this.#tokens = this.parameters.normal('tokens', [question.vocabulary, dim], 1);
    this.#positions = this.parameters.normal('positions', [question.length, dim], 1);
    for (let l = 0; l < sizes.layers; ++l)
      this.#layers.push(this.#encoderLayer(kind, `layer.${l}`));
    this.#after = this.#norm('norm');
    this.#classifier = this.#affine('classifier', question.classes, dim);
  }

  /** Loss and accuracy on a batch; its gradients are added to the parameters' when `learn`. */
  run(batch: Batch, learn: boolean): Verdict {
    const { length, classes, perToken } = this.#question;
    const { dim, heads } = this.#sizes;
    const count = batch.tokens.length / length;
    const sizes = { batch: count, length, heads, headDim: dim / heads };
    const embedding = embed(batch.tokens, length, this.#tokens, this.#positions);
    let x = embedding.output;
    const steps = this.#layers.map((layer) => {
      const step = encode(layer, sizes, x, batch.lengths);
      x = step.output;
      return step;
    });
    const norm = normalise(x, this.#after);
    const lengths = batch.lengths ?? new Int32Array(count).fill(length);
    const pooled = perToken ? undefined : meanOfRows(norm.output, lengths, dim);
    const { weight, bias } = this.#classifier;
    const logits = linear(pooled?.output ?? norm.output, weight, bias);
    const verdict = crossEntropy(logits.output, batch.targets, classes);
    if (!learn) return verdict;

    const classified = logits.backward(verdict.gradient);
    let gradient = norm.backward(pooled?.backward(classified) ?? classified);
    for (const step of steps.toReversed()) gradient = step.backward(gradient);
    embedding.backward(gradient);
    return verdict;
  }

  #encoderLayer(kind: Kind, name: string): EncoderLayer {
    const { dim, heads, hidden } = this.#sizes;
    const { length } = this.#question;
    const sizes: AttentionSizes = { batch: 1, length, heads, headDim: dim / heads };
    return {
      attend: makeAttention(kind, this.parameters, `${name}.attention`, sizes),
      before: this.#norm(`${name}.before`),
      query: this.#affine(`${name}.query`, dim, dim),
      key: this.#affine(`${name}.key`, dim, dim),
      value: this.#affine(`${name}.value`, dim, dim),
      output: this.#affine(`${name}.output`, dim, dim),
      between: this.#norm(`${name}.between`),
      widen: this.#affine(`${name}.widen`, hidden, dim),
      narrow: this.#affine(`${name}.narrow`, dim, hidden),
    };
  }

  #affine(name: string, outputs: number, inputs: number): Affine {
    return {
      weight: this.parameters.weight(`${name}.weight`, outputs, inputs),
      bias: this.parameters.vector(`${name}.bias`, outputs, 0),
    };
  }

  #norm(name: string): Norm {
    const { dim } = this.#sizes;
    return {
      scale: this.parameters.vector(`${name}.scale`, dim, 1),
      shift: this.parameters.vector(`${name}.shift`, dim, 0),
    };
  }
}

const normalise = (x: Float32Array, { scale, shift }: Norm) => layerNorm(x, scale, shift);
const apply = (x: Float32Array, { weight, bias }: Affine) => linear(x, weight, bias);

/** x + attention(norm(x)), then y + feed-forward(norm(y)). */
function encode(
  layer: EncoderLayer,
  sizes: AttentionSizes,
  x: Float32Array,
  lengths: Int32Array | undefined,
) {
  const before = normalise(x, layer.before);
  const query = apply(before.output, layer.query);
  const key = apply(before.output, layer.key);
  const value = apply(before.output, layer.value);
  const projections = { query: query.output, key: key.output, value: value.output };
  const attention = layer.attend(sizes, projections, before.output, lengths);
  const mixed = apply(attention.output, layer.output);
  const y = add(x, mixed.output);

  const between = normalise(y, layer.between);
  const widened = apply(between.output, layer.widen);
  const active = relu(widened.output);
  const narrowed = apply(active.output, layer.narrow);
  const output = add(y, narrowed.output);

  const backward = (gradient: Float32Array): Float32Array => {
    const inner = widened.backward(active.backward(narrowed.backward(gradient)));
    const byY = add(gradient, between.backward(inner));
    const by = attention.backward(mixed.backward(byY));
    let hidden = add(query.backward(by.query), key.backward(by.key));
    hidden = add(hidden, value.backward(by.value));
    if (by.hidden !== undefined) hidden = add(hidden, by.hidden);
    return add(byY, before.backward(hidden));
  };
  return { output, backward };
}
