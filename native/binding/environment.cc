#include "native/binding/environment.h"

#include <new>

#include "native/binding/errors.h"
#include "native/core/abort.h"
#include "native/core/thread_pool.h"
#include "native/core/wait.h"

namespace cluster_attention {
namespace binding {

bool Environment::attach(napi_env env) {
  Environment* environment = new (std::nothrow) Environment(env);
  if (environment == nullptr) {
    napi_throw_error(env, "ERR_OUT_OF_MEMORY", "no memory for the addon's state");
    return false;
  }
  // The cleanup hook comes last: hooks run in reverse order, so it runs while the thread-safe
  // function is still there.
  napi_value name = nullptr;
  const bool attached =
      napi_create_string_utf8(env, "cluster_attention", NAPI_AUTO_LENGTH, &name) == napi_ok &&
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr,
                                      settle_on_javascript_thread,
                                      &environment->report_) == napi_ok &&
      // Idle: it must not keep the process alive.
      napi_unref_threadsafe_function(env, environment->report_) == napi_ok &&
      napi_set_instance_data(env, environment, nullptr, nullptr) == napi_ok &&
      napi_add_env_cleanup_hook(env, clean_up, environment) == napi_ok;
  if (attached) return true;
  throw_napi_error(env);
  delete environment;
  return false;
}

Environment* Environment::of(napi_env env) {
  void* data = nullptr;
  if (napi_get_instance_data(env, &data) != napi_ok) return nullptr;
  return static_cast<Environment*>(data);
}

napi_value Environment::start(PendingCall* call, napi_value request, RunsOn threads) {
  napi_value promise = nullptr;
  if (napi_create_reference(env_, request, 1, &call->request_) != napi_ok ||
      napi_create_promise(env_, &call->deferred_, &promise) != napi_ok) {
    throw_napi_error(env_);
    if (call->request_ != nullptr) napi_delete_reference(env_, call->request_);
    delete call;
    return nullptr;
  }
  call->environment_ = this;
  link(call);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++unfinished_;
  }
  if (!post(call, threads)) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      --unfinished_;
    }
    call->status_ = Status::out_of_memory();
    settle(call);
  }
  return promise;
}

bool Environment::post(PendingCall* call, RunsOn threads) {
  return threads == RunsOn::pool ? ThreadPool::instance().post(run_on_thread, call)
                                 : devices_.threads.post(run_on_thread, call);
}

void Environment::run_on_thread(void* data) {
  PendingCall* call = static_cast<PendingCall*>(data);
  PendingCall::Phase phase = PendingCall::Phase::queued;
  if (!call->phase_.compare_exchange_strong(phase, PendingCall::Phase::running)) {
    delete call;  // abandoned: its environment is gone
    return;
  }
  Environment* environment = call->environment_;
  call->status_ = call->compute();

  // Under the lock, so that the environment cannot go away before the last touch of it.
  std::lock_guard<std::mutex> lock(environment->mutex_);
  napi_call_threadsafe_function(environment->report_, call, napi_tsfn_nonblocking);
  if (--environment->unfinished_ == 0) environment->all_finished_.notify_all();
}

void Environment::settle_on_javascript_thread(napi_env env, napi_value, void*, void* data) {
  // Without an env the environment is being torn down: clean_up() has deleted the call.
  if (env == nullptr) return;
  PendingCall* call = static_cast<PendingCall*>(data);
  call->environment_->settle(call);
}

void Environment::settle(PendingCall* call) {
  // A failure here means that this environment may not run JavaScript any more; nobody is left to
  // be told.
  const napi_value outcome = make_outcome(env_, call->status_);
  if (outcome != nullptr) napi_resolve_deferred(env_, call->deferred_, outcome);
  napi_delete_reference(env_, call->request_);
  unlink(call);
  delete call;
}

void Environment::clean_up(void* data) {
  Environment* environment = static_cast<Environment*>(data);
  PendingCall* running = nullptr;
  int64_t abandoned = 0;
  while (environment->calls_ != nullptr) {
    PendingCall* call = environment->calls_;
    environment->calls_ = call->next_;
    const napi_ref request = call->request_;
    if (call->abort_ != nullptr) raise_flag(call->abort_);
    PendingCall::Phase phase = PendingCall::Phase::queued;
    if (call->phase_.compare_exchange_strong(phase, PendingCall::Phase::abandoned)) {
      // It now belongs to the thread that will find it, and may be gone already.
      napi_delete_reference(environment->env_, request);
      ++abandoned;
    } else {
      call->next_ = running;
      running = call;
    }
  }
  {
    std::unique_lock<std::mutex> lock(environment->mutex_);
    environment->unfinished_ -= abandoned;
    while (environment->unfinished_ != 0) wait(environment->all_finished_, lock);
  }
  while (running != nullptr) {
    PendingCall* call = running;
    running = call->next_;
    napi_delete_reference(environment->env_, call->request_);
    delete call;
  }
  // Node closes the thread-safe function itself, right after this hook. Threads that wait for
  // devices end here.
  delete environment;
}

void Environment::link(PendingCall* call) {
  if (calls_ == nullptr) napi_ref_threadsafe_function(env_, report_);
  call->next_ = calls_;
  if (calls_ != nullptr) calls_->previous_ = call;
  calls_ = call;
}

void Environment::unlink(PendingCall* call) {
  if (call->previous_ != nullptr) {
    call->previous_->next_ = call->next_;
  } else {
    calls_ = call->next_;
  }
  if (call->next_ != nullptr) call->next_->previous_ = call->previous_;
  if (calls_ == nullptr) napi_unref_threadsafe_function(env_, report_);
}

}  // namespace binding
}  // namespace cluster_attention
