"""What an encoder has been taught to ignore: how far features move under views, and how far under lesions.

Every augmentation is an invariance that contrastive training asks for, and a lesion is often a change of brightness.
Visibility of a lesion at a layer is the movement of the features inside it, divided by their movement under the views
of the training: 1 means that a lesion is no more to this layer than what it was told to overlook.
"""
