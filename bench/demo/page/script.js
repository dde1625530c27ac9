{
  const compare = document.querySelector('.compare');
  const stage = compare.querySelector('.stage');
  const range = stage.querySelector('input');
  const split = () => compare.style.setProperty('--split', `${range.value}%`);
  range.addEventListener('input', split);
  split();

  const pictures = new Map(
    [...document.querySelectorAll('img[data-view]')].map((image) => [image.dataset.view, image]),
  );
  for (const select of compare.querySelectorAll('select')) {
    const shown = stage.querySelector(`.${select.name}`);
    const show = () => {
      const { src, alt } = pictures.get(select.value);
      Object.assign(shown, { src, alt });
    };
    select.addEventListener('change', show);
    show();
  }

  const gallery = document.querySelector('.gallery');
  gallery.addEventListener('pointermove', (event) => {
    const lens = event.target.closest('.lens');
    if (!lens) return;
    const { left, top, width, height } = lens.getBoundingClientRect();
    gallery.style.setProperty('--x', `${(100 * (event.clientX - left)) / width}%`);
    gallery.style.setProperty('--y', `${(100 * (event.clientY - top)) / height}%`);
    gallery.style.setProperty('--zoom', '3.2');
  });
  gallery.addEventListener('pointerleave', () => gallery.style.setProperty('--zoom', '1'));
}
