"""The progress bar of the offline phase."""

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback


class OfflineProgressBarCallback(ProgressBarCallback):
    """
    SB3's progress bar for the offline phase, where each call is one gradient step, however many environments
    the model has.
    """

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True


def with_offline_progress_bar(callback: MaybeCallback) -> BaseCallback:
    """
    :param callback: Whatever ``learn()`` takes
    :return: The same with a progress bar
    """
    if isinstance(callback, list):
        callback = CallbackList(callback)
    elif not isinstance(callback, BaseCallback):
        callback = ConvertCallback(callback)
    return CallbackList([callback, OfflineProgressBarCallback()])
