class Keeper:
    def __init__(self, folder, name, path, info):
        self.folder = folder
        self.note = ""
