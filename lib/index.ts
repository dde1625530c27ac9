/**
 * Attention made cheap by clustering. Every operation comes as `name(options)`, which computes on
 * a thread pool and returns a promise (inputs are copied at the call), and as `nameSync(options)`,
 * which computes on the calling thread and borrows the inputs.
 */
export { attention, attentionSync, attentionVjp, attentionVjpSync } from './attention';
export type { AttentionDetails, ExactAttentionOptions } from './attention';
export {
  clusteredAttention,
  clusteredAttentionSync,
  clusteredAttentionVjp,
  clusteredAttentionVjpSync,
  improvedClusteredAttention,
  improvedClusteredAttentionSync,
  improvedClusteredAttentionVjp,
  improvedClusteredAttentionVjpSync,
} from './clustered-attention';
export type {
  ClusteredAttentionDetails,
  ClusteredAttentionOptions,
  ImprovedClusteredAttentionDetails,
  ImprovedClusteredAttentionOptions,
} from './clustered-attention';
export {
  centroidAttention,
  centroidAttentionSync,
  centroidAttentionVjp,
  centroidAttentionVjpSync,
} from './centroid-attention';
export type {
  CentroidAttentionDetails,
  CentroidAttentionGradients,
  CentroidAttentionOptions,
} from './centroid-attention';
export type { CentroidWeighting } from './centroid-weighting';
export {
  castAttention,
  castAttentionSync,
  castAttentionVjp,
  castAttentionVjpSync,
} from './cast-attention';
export type {
  CastAttentionDetails,
  CastAttentionGradients,
  CastAttentionOptions,
} from './cast-attention';
export {
  centroidPool,
  centroidPoolSync,
  centroidPoolVjp,
  centroidPoolVjpSync,
} from './centroid-pool';
export type {
  CentroidPoolDetails,
  CentroidPoolGradients,
  CentroidPoolOptions,
} from './centroid-pool';
export {
  centroidEncode,
  centroidEncodeSync,
  centroidEncodeVjp,
  centroidEncodeVjpSync,
} from './centroid-encode';
export type { CentroidEncodeGradients, CentroidEncodeOptions } from './centroid-encode';
export { hash, hashSync, lshPlanes, lshPlanesSync } from './hash';
export type { HashOptions, LshPlanesOptions } from './hash';
export { hammingKMeans, hammingKMeansSync } from './hamming-k-means';
export type { HammingKMeansOptions, HammingKMeansResult } from './hamming-k-means';
export { kMeans, kMeansSync } from './k-means';
export type { KMeansOptions, KMeansResult } from './k-means';
export {
  aggregate,
  aggregateSync,
  aggregateVjp,
  aggregateVjpSync,
  broadcast,
  broadcastSync,
  broadcastVjp,
  broadcastVjpSync,
} from './aggregate';
export type { AggregateGradients, AggregateOptions, BroadcastOptions } from './aggregate';
export { topK, topKSync } from './top-k';
export type { TopKOptions, TopKResult } from './top-k';
export {
  sparseDot,
  sparseDotSync,
  sparseDotVjp,
  sparseDotVjpSync,
  sparseWeightedSum,
  sparseWeightedSumSync,
  sparseWeightedSumVjp,
  sparseWeightedSumVjpSync,
} from './sparse';
export type {
  SparseDotGradients,
  SparseDotOptions,
  SparseOptions,
  SparseWeightedSumGradients,
  SparseWeightedSumOptions,
} from './sparse';
export { matmul, matmulSync } from './matmul';
export type { MatmulOptions } from './matmul';
export { DeviceTensor } from './device-tensor';
export type { DeviceDtype, DeviceTensorOptions, HostArray, ToArrayOptions } from './device-tensor';
export { info } from './info';
export type { CudaDevice, CudaInfo, Info } from './info';
export { getNumThreads, setNumThreads } from './threads';
export type { ClusterAttentionError, ErrorCode } from './errors';
export type {
  AsyncBackwardOptions,
  AsyncOperation,
  AttentionGradients,
  AttentionOptions,
  AttentionShape,
  BackwardOptions,
  CallOptions,
  CommonOptions,
  DetailedOperation,
  DetailedOperationSync,
  Device,
  DeviceResult,
  DeviceVjp,
  DeviceVjpSync,
  OnDevice,
  PerhapsDetails,
  SyncOperation,
  SyncOptions,
  TensorLayout,
  Vjp,
  VjpOperation,
  VjpOperationSync,
  VjpSync,
  WithDetails,
  WithoutDetails,
} from './types';
